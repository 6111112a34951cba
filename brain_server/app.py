"""Assembles the brain. Parts start from top to bottom, and stop from bottom to top."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aivo.brain.v1.adapter_service_pb2_grpc import add_AdapterServiceServicer_to_server
from aivo.brain.v1.brain_service_pb2_grpc import add_BrainServiceServicer_to_server

from brain_server.assess.assessor import Assessor
from brain_server.edge.health import BrainHealthCheck
from brain_server.edge.metrics import EngineCollector, ReplyMetrics, SafetyMetrics
from brain_server.edge.servicer import AdapterServicer, BrainServicer
from brain_server.safety.agent import SafetyAgent
from brain_server.safety.assessing import ScreenedAssessor
from brain_server.settings import BrainSettings
from brain_server.torch_engine.engine import TorchEngine
from brain_server.vllm_engine.engine import VllmEngine
from mesh.adapters.notices import Listener
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.rpc.server import Server

BRAIN_SERVICE = "aivo.brain.v1.BrainService"
ADAPTER_SERVICE = "aivo.brain.v1.AdapterService"


async def run(settings: BrainSettings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        OSError: The server can't listen on its address.
    """
    async with open_server(settings) as server:
        await server.serve_until_signal()


@asynccontextmanager
async def open_server(settings: BrainSettings) -> AsyncIterator[Server]:
    """Yields the server, ready to start; drains it on exit.

    Does not wait for the base model, nor for the store: the server starts without them, and its health reports that.
    Without Redis, or while it is down, the brain notices a new version when its cached pointer expires.
    """
    async with AsyncExitStack() as stack:
        adapters = AdapterStore(await stack.enter_async_context(S3Blobs.of(settings)), tenant=settings.tenant)
        engine = await _open_engine(stack, settings, adapters)
        if settings.redis_url is not None:
            pointers = engine.pointers
            listener = Listener(
                settings.redis_url, tenant=settings.tenant, on_moved=pointers.mark_stale, on_gap=pointers.mark_all_stale
            )
            await stack.enter_async_context(listener)

        server = _server(settings)
        server.registry.register(EngineCollector(engine))
        health = await stack.enter_async_context(
            BrainHealthCheck(engine, adapters=adapters, safety=settings.safety, is_draining=lambda: server.draining)
        )
        agent = SafetyAgent.of(engine, settings, on_flag=lambda _: None, observe=SafetyMetrics(server.registry).observe)
        server.add(
            add_BrainServiceServicer_to_server,
            BrainServicer(
                engine,
                agent=agent,
                assessor=ScreenedAssessor(Assessor(engine), agent),
                health=health,
                observe=ReplyMetrics(server.registry).observe,
            ),
            service=BRAIN_SERVICE,
            ready=lambda: engine.facts.ready,
        )
        server.add(
            add_AdapterServiceServicer_to_server,
            AdapterServicer(engine),
            service=ADAPTER_SERVICE,
            ready=lambda: engine.facts.ready,
        )
        stack.push_async_callback(server.stop)
        yield server


async def _open_engine(
    stack: AsyncExitStack, settings: BrainSettings, adapters: AdapterStore
) -> TorchEngine | VllmEngine:
    if settings.engine == "vllm":
        return await stack.enter_async_context(VllmEngine.open(settings, adapters))
    return await stack.enter_async_context(TorchEngine.open(settings, adapters))


def _server(settings: BrainSettings) -> Server:
    return Server(
        host=settings.brain_host,
        port=settings.brain_port,
        metrics_port=settings.brain_metrics_port,
        drain_seconds=settings.drain_seconds,
        reflection=settings.reflection,
    )
