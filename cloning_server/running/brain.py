"""The brain server, called over gRPC."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager

import grpc
from aivo.brain.v1 import adapter_service_pb2 as pb
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.errors import BrainUnavailable, DeadlineExceeded, ResourceExhausted, Unavailable
from mesh.rpc.errors import RemoteError, error_of

_SERVICE = "aivo.brain.v1.AdapterService"
# A fetch from the store, a load and a probe take well below a second; a brain under full load some.
WARM_SECONDS = 60.0
# Nothing is computed; who deletes a student waits for it.
EVICT_SECONDS = 5.0
# How a call ends that was under way when the brain died, besides UNAVAILABLE.
_CUT_OFF = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}


class GrpcBrain:
    """A `Brain` behind a channel, which its owner closes."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._adapters = AdapterServiceStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def warm(self, student_id: str, version: int) -> str:
        """See `Brain.warm`. Also raises what the brain says of the adapter, such as `AdapterIncompatible`."""
        request = pb.WarmAdapterRequest(student_id=student_id, version=version)
        with _told_as_unavailable():
            response = await self._adapters.WarmAdapter(request, timeout=WARM_SECONDS)
        return response.adapter.sha256

    async def evict(self, student_id: str) -> int:
        """See `Brain.evict`."""
        request = pb.EvictAdapterRequest(student_id=student_id)
        with _told_as_unavailable():
            response = await self._adapters.EvictAdapter(request, timeout=EVICT_SECONDS)
        return len(response.adapters)

    async def check(self) -> None:
        """See `Brain.check`."""
        call: Awaitable[health_pb2.HealthCheckResponse] = self._health.Check(
            health_pb2.HealthCheckRequest(service=_SERVICE)
        )
        with _told_as_unavailable():
            response = await call
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            raise BrainUnavailable("the brain is up and does not serve")


@contextmanager
def _told_as_unavailable() -> Iterator[None]:
    """Turns what passes by itself into `BrainUnavailable`, and all else into what the brain raised."""
    try:
        yield
    except grpc.aio.AioRpcError as rpc_error:
        error = error_of(rpc_error, unreachable=BrainUnavailable)
        is_cut_off = isinstance(error, RemoteError) and error.code in _CUT_OFF
        if is_cut_off or isinstance(error, Unavailable | DeadlineExceeded | ResourceExhausted):
            raise BrainUnavailable(str(error)) from rpc_error
        raise error from rpc_error
