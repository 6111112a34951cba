"""A brain that serves over gRPC, around an engine that follows a script."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub, add_AdapterServiceServicer_to_server
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub, add_BrainServiceServicer_to_server

from brain_server.assess.assessor import Assessor
from brain_server.edge.health import BrainHealthCheck
from brain_server.edge.metrics import SafetyMetrics
from brain_server.edge.servicer import AdapterServicer, BrainServicer
from brain_server.engine.contract import Reply
from brain_server.safety.agent import SafetyAgent, SafetyFlag
from brain_server.safety.assessing import ScreenedAssessor
from brain_server.safety.settings import SafetySettings
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.guarding import HarmCategory
from mesh.rpc.channels import open_channel
from mesh.rpc.server import Server
from testing.models.random_roles import role_manifest
from testing.parts.stores import S3Endpoint
from testing.scripted.engine import MAIN_BRAIN, ScriptedEngine

if TYPE_CHECKING:
    # The generated code has these for type checkers alone.
    from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub


@dataclass(frozen=True, slots=True)
class Served:
    """A brain that runs, and what stands behind it: its engine, the replies that it observed, what it flagged."""

    engine: ScriptedEngine
    observed: list[Reply]
    server: Server
    brain: "BrainServiceAsyncStub"
    adapters: "AdapterServiceAsyncStub"
    flags: list[SafetyFlag]


async def serve(
    stack: AsyncExitStack, *, s3_url: str | None, bucket: str, safety: SafetySettings | None = None
) -> Served:
    """A brain on a free port, its adapters in this S3; by default it screens nothing."""
    safety = safety or SafetySettings(safety="off")
    blobs = S3Blobs(bucket=bucket, endpoint_url=s3_url, create_bucket=True)
    store = AdapterStore(await stack.enter_async_context(blobs))
    engine = ScriptedEngine()
    observed: list[Reply] = []
    server = Server(host="127.0.0.1", port=0, metrics_port=None, drain_seconds=5)
    health = BrainHealthCheck(engine, adapters=store, safety=safety.safety, is_draining=lambda: server.draining)
    flags: list[SafetyFlag] = []
    agent = SafetyAgent.of(engine, safety, on_flag=flags.append, observe=SafetyMetrics(server.registry).observe)
    stack.push_async_callback(agent.finish)
    await stack.enter_async_context(health)
    server.add(
        add_BrainServiceServicer_to_server,
        BrainServicer(
            engine,
            agent=agent,
            assessor=ScreenedAssessor(Assessor(engine), agent),
            health=health,
            observe=observed.append,
        ),
        service="aivo.brain.v1.BrainService",
        ready=lambda: engine.facts.ready,
    )
    server.add(
        add_AdapterServiceServicer_to_server,
        AdapterServicer(engine),
        service="aivo.brain.v1.AdapterService",
        ready=lambda: engine.facts.ready,
    )
    stack.push_async_callback(server.stop)
    await server.start()
    channel = await stack.enter_async_context(open_channel(f"127.0.0.1:{server.port}"))
    return Served(engine, observed, server, BrainServiceStub(channel), AdapterServiceStub(channel), flags)


@pytest.fixture
async def served(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[Served]:
    async with AsyncExitStack() as stack:
        yield await serve(stack, s3_url=s3_endpoint.url, bucket=bucket)


def give_guard(served: Served) -> None:
    """Gives a brain a guard that takes three phrases for harmful."""
    served.engine.has_guard(role_manifest(b"weights", role="guard", base_digest=MAIN_BRAIN))
    served.engine.harmful = {
        "nobody needs me": HarmCategory.SELF_HARM,
        "gunpowder": HarmCategory.VIOLENCE,
        "first mix": HarmCategory.VIOLENCE,
    }


@pytest.fixture
async def screened(settings: SafetySettings, s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[Served]:
    """A brain that screens as `settings` say, with a guard."""
    async with AsyncExitStack() as stack:
        served = await serve(stack, s3_url=s3_endpoint.url, bucket=bucket, safety=settings)
        give_guard(served)
        yield served
