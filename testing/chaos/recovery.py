"""What must hold soon after each strike: every server is well, and all that tell of it agree."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import grpc
import httpx
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.cloning.v1 import cloning_service_pb2 as cloning_pb
from aivo.cloning.v1.cloning_service_pb2_grpc import CloningServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from mesh.rpc.channels import open_channel
from mesh.rpc.health import LIVENESS
from testing.chaos.aivo import Aivo
from testing.waiting import until

# Enough for the restart of everything, leases and pauses, on two busy cores.
RECOVERY_SECONDS = 120.0
CALL_SECONDS = 10.0
_SERVING = health_pb2.HealthCheckResponse.SERVING


class PeoplesHealth(Protocol):
    """What `GetHealth` of either server answers."""

    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A server, by what it says of itself.

    Attributes:
        name: In the words of a report.
        metrics_url: Its figures.
        get_health: Its `GetHealth`.
        standard: Its `grpc.health`.
    """

    name: str
    metrics_url: str
    get_health: Callable[[], Awaitable[PeoplesHealth]]
    standard: health_pb2_grpc.HealthStub

    async def fault(self) -> str:
        """What is wrong with it now; empty if nothing is."""
        try:
            health = await self.get_health()
            serving = [await self._serves(service) for service in ("", LIVENESS)]
            task_fault = await self._task_fault()
        except (grpc.aio.AioRpcError, httpx.TransportError) as error:
            return f"{self.name} does not answer ({type(error).__name__})"
        if health.status != "healthy":
            return f"{self.name} is {health.status}: {health.reason}"
        if not all(serving):
            return f"{self.name} is healthy, but grpc.health says {serving}"
        return f"{self.name} is healthy, but {task_fault}" if task_fault else ""

    async def _serves(self, service: str) -> bool:
        request = health_pb2.HealthCheckRequest(service=service)
        return bool((await self.standard.Check(request)).status == _SERVING)

    async def _task_fault(self) -> str:
        """What is wrong with its background tasks; empty if all run, and none has crashed since the server's start."""
        async with httpx.AsyncClient(timeout=CALL_SECONDS) as client:
            text = (await client.get(self.metrics_url)).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        running = [sample for sample in samples if sample.name == "aivo_background_running"]
        restarts = [sample for sample in samples if sample.name == "aivo_background_restarts_total"]
        stopped = [sample.labels["task"] for sample in running if not sample.value]
        crashed = [sample.labels["task"] for sample in restarts if sample.value]
        if not running or stopped or crashed:
            return f"of {len(running)} tasks, {stopped} stopped and {crashed} crashed"
        return ""


@contextlib.asynccontextmanager
async def watch_servers(aivo: Aivo) -> AsyncIterator[Sequence[Watched]]:
    """Connects to all servers."""
    async with contextlib.AsyncExitStack() as channels:
        servers = []
        for server in (*aivo.cloning, aivo.brain):
            channel = await channels.enter_async_context(open_channel(server.address, timeout_seconds=CALL_SECONDS))
            watch = watch_brain if server is aivo.brain else watch_cloning_server
            servers.append(watch(channel, name=server.folder.name, metrics_url=server.metrics_url))
        yield servers


def watch_brain(channel: grpc.aio.Channel, *, name: str, metrics_url: str) -> Watched:
    """A brain at this channel."""
    get_health = partial(BrainServiceStub(channel).GetHealth, brain_pb.GetHealthRequest())
    standard = health_pb2_grpc.HealthStub(channel)
    return Watched(name=name, metrics_url=metrics_url, get_health=get_health, standard=standard)


def watch_cloning_server(channel: grpc.aio.Channel, *, name: str, metrics_url: str) -> Watched:
    """A cloning server at this channel."""
    get_health = partial(CloningServiceStub(channel).GetHealth, cloning_pb.GetHealthRequest())
    standard = health_pb2_grpc.HealthStub(channel)
    return Watched(name=name, metrics_url=metrics_url, get_health=get_health, standard=standard)


async def faults_of(servers: Sequence[Watched]) -> list[str]:
    """Returns once all is well; or, if it is not in time, what is wrong."""
    faults = ["nothing answers in time"]

    async def are_well() -> bool:
        faults[:] = [fault for server in servers if (fault := await server.fault())]
        return not faults

    with contextlib.suppress(TimeoutError):
        await until(are_well, seconds=RECOVERY_SECONDS)
    return faults
