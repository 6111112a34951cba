"""Both servers with all of their edges, and the gateway in front of them; nothing decodes and nothing trains."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import httpx
import pytest

from cloning_server.app import open_server
from cloning_server.settings import CloningSettings
from testing.parts.envoy import envoy
from testing.parts.stores import RedisEndpoint, S3Endpoint
from testing.scripted.trainer import ScriptedTrainer
from tests.brain_server.edge.conftest import serve as serve_brain

BUCKET = "test-fuzz"
FEEDBACK = {
    "feedback": "Plants need light.",
    "strengths": ["You named the Sun."],
    "areas_for_improvement": ["Say what else they need."],
    "next_steps": "Read about water.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The doors of one server: itself, and the gateway's port, by gRPC and by REST."""

    direct: grpc.aio.Channel
    gateway: grpc.aio.Channel
    rest: httpx.AsyncClient
    ports: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """The doors of both servers."""

    brain: Side
    cloning: Side


@pytest.fixture(scope="package")
async def doors(
    s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Doors]:
    async with AsyncExitStack() as stack:
        brain = await serve_brain(stack, s3_url=s3_endpoint.url, bucket=BUCKET)
        # What the engine replies to Assess, whose schema a real engine keeps to.
        brain.engine.text = json.dumps(FEEDBACK)
        settings = CloningSettings(
            cloning_port=0,
            cloning_metrics_port=0,
            drain_seconds=0,
            redis_url=redis_endpoint.url,
            s3_endpoint_url=s3_endpoint.url,
            s3_bucket=BUCKET,
            tenant=f"t{uuid.uuid4().hex}",
            brain_address=f"127.0.0.1:{brain.server.port}",
        )
        trainer = ScriptedTrainer()
        trainer.seats = 0
        cloning = await stack.enter_async_context(open_server(settings, trainer=trainer))
        await cloning.start()
        edge = await stack.enter_async_context(
            envoy(
                tmp_path_factory.mktemp("envoy"),
                brain_address=f"127.0.0.1:{brain.server.port}",
                cloning_address=f"127.0.0.1:{cloning.port}",
            )
        )

        async def side(port: int, address: str, url: str) -> Side:
            return Side(
                direct=await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}")),
                gateway=await stack.enter_async_context(grpc.aio.insecure_channel(address)),
                rest=await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=60)),
                ports=(port, int(address.rpartition(":")[2])),
            )

        yield Doors(
            brain=await side(brain.server.port, edge.brain_address, edge.brain_url),
            cloning=await side(cloning.port, edge.cloning_address, edge.cloning_url),
        )
