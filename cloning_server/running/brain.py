"""The brain server: what a clone needs of it, and the client that calls it over gRPC."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc
from aivo.brain.v1 import adapter_service_pb2 as pb
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import BrainUnavailable, DeadlineExceeded, ResourceExhausted, Unavailable
from mesh.rpc.errors import RemoteError, error_of

_SERVICE = "aivo.brain.v1.AdapterService"
# A fetch from the store, a load and a probe take well below a second; under full load, some seconds.
WARM_SECONDS = 60.0
# An eviction computes nothing, and the caller of DeleteStudent waits for it.
EVICT_SECONDS = 5.0
# The status of a call during which the brain died, besides UNAVAILABLE.
_CUT_OFF = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


class Brain(Protocol):
    """The server that replies with the adapters."""

    async def warm(self, student_id: str, version: int) -> str:
        """Makes the brain load a version and probe it; returns the sha256 of its weights.

        The brain also reads the student's active pointer, so requests after this use the version that is active now.

        Raises:
            BrainUnavailable: The brain, or a service that it depends on, does not answer now.
        """
        ...

    async def evict(self, student_id: str) -> int:
        """Makes the brain drop a student's adapters from memory; returns how many there were.

        Raises:
            BrainUnavailable: The brain does not answer now.
        """
        ...

    async def check(self) -> None:
        """Returns if the brain can load adapters.

        Raises:
            BrainUnavailable: It can't.
        """
        ...


class GrpcBrain:
    """A `Brain` that is called through a channel. The channel's owner closes it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._adapters = AdapterServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def warm(self, student_id: str, version: int) -> str:
        """See `Brain.warm`. Also raises the brain's errors about the adapter, such as `AdapterIncompatible`."""
        request = pb.WarmAdapterRequest(student_id=student_id, version=version)
        with _temporary_as_unavailable():
            response = await self._adapters.WarmAdapter(request, timeout=WARM_SECONDS)
        return response.adapter.sha256

    async def evict(self, student_id: str) -> int:
        """See `Brain.evict`."""
        request = pb.EvictAdapterRequest(student_id=student_id)
        with _temporary_as_unavailable():
            response = await self._adapters.EvictAdapter(request, timeout=EVICT_SECONDS)
        return len(response.adapters)

    async def check(self) -> None:
        """See `Brain.check`."""
        call: Awaitable[health_pb2.HealthCheckResponse] = self._health.Check(
            health_pb2.HealthCheckRequest(service=_SERVICE)
        )
        with _temporary_as_unavailable():
            response = await call
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            raise BrainUnavailable("the brain is running but is not ready to serve adapters")


@contextmanager
def _temporary_as_unavailable() -> Iterator[None]:
    """Turns temporary errors into `BrainUnavailable`, and all others into what the brain raised."""
    try:
        yield
    except grpc.aio.AioRpcError as rpc_error:
        error = error_of(rpc_error, unreachable=BrainUnavailable)
        is_cut_off = isinstance(error, RemoteError) and error.code in _CUT_OFF
        if is_cut_off or isinstance(error, Unavailable | DeadlineExceeded | ResourceExhausted):
            raise BrainUnavailable(str(error)) from rpc_error
        raise error from rpc_error
