"""One real Envoy for the folder, in front of servers whose scripts each test starts anew."""

from collections.abc import AsyncIterator

import grpc
import httpx
import pytest

from testing.parts.envoy import Edge, envoy
from testing.scripted.brain_server import ScriptedBrain, serving_brain
from testing.scripted.cloning_server import ScriptedCloning, serving_cloning
from testing.scripted.script import Script

ORIGIN = "https://school.example"


@pytest.fixture(scope="package")
async def servers() -> AsyncIterator[tuple[ScriptedBrain, ScriptedCloning, int, int]]:
    brain, cloning = ScriptedBrain(), ScriptedCloning()
    async with serving_brain(brain) as brain_port, serving_cloning(cloning) as cloning_port:
        yield brain, cloning, brain_port, cloning_port


@pytest.fixture(scope="package")
async def edge(
    servers: tuple[ScriptedBrain, ScriptedCloning, int, int], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    _, _, brain_port, cloning_port = servers
    async with envoy(
        tmp_path_factory.mktemp("envoy"),
        brain_address=f"127.0.0.1:{brain_port}",
        cloning_address=f"127.0.0.1:{cloning_port}",
        cors_allow_origins=ORIGIN,
    ) as running:
        yield running


@pytest.fixture
def brain(servers: tuple[ScriptedBrain, ScriptedCloning, int, int]) -> Script:
    """The brain's script, blank."""
    servers[0].script = Script()
    return servers[0].script


@pytest.fixture
def cloning(servers: tuple[ScriptedBrain, ScriptedCloning, int, int]) -> Script:
    """The cloning server's script, blank."""
    servers[1].script = Script()
    return servers[1].script


@pytest.fixture
async def brain_rest(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.brain_url) as client:
        yield client


@pytest.fixture
async def cloning_rest(edge: Edge) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=edge.cloning_url) as client:
        yield client


@pytest.fixture
async def brain_channel(edge: Edge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(edge.brain_address) as channel:
        yield channel
