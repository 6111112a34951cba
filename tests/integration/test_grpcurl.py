"""What ops do: grpcurl by reflection, straight to the servers and through the gateway."""

import asyncio
import json
import sys
from pathlib import Path

import pytest

from testing.parts.stack import Stack

GRPCURL = Path(sys.executable).parent / "grpcurl"


async def grpcurl(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        str(GRPCURL), "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.fixture(params=["direct", "gateway"])
def addresses(request: pytest.FixtureRequest, aivo: Stack) -> tuple[str, str]:
    if request.param == "direct":
        return aivo.brain_server.address, aivo.cloning_server.address
    return aivo.edge.brain_address, aivo.edge.cloning_address


async def test_services_are_listed(addresses: tuple[str, str]) -> None:
    brain, cloning = [(await grpcurl(address, "list")).split() for address in addresses]

    assert {"aivo.brain.v1.BrainService", "grpc.health.v1.Health"} <= set(brain)
    assert {"aivo.cloning.v1.CloningService", "grpc.health.v1.Health"} <= set(cloning)


async def test_services_are_described(addresses: tuple[str, str]) -> None:
    brain, cloning = addresses

    assert "rpc GenerateStream" in await grpcurl(brain, "describe", "aivo.brain.v1.BrainService")
    assert "rpc WatchClone" in await grpcurl(cloning, "describe", "aivo.cloning.v1.CloningService")


async def test_services_are_called(addresses: tuple[str, str]) -> None:
    brain, cloning = addresses
    ask = json.dumps({"prompt": "What is rain?", "max_tokens": 4})

    assert json.loads(await grpcurl("-d", ask, brain, "aivo.brain.v1.BrainService/Generate"))["response"]
    assert '"finished"' in await grpcurl("-d", ask, brain, "aivo.brain.v1.BrainService/GenerateStream")
    assert json.loads(await grpcurl(cloning, "aivo.cloning.v1.CloningService/GetHealth"))["status"] == "healthy"
    for address in addresses:
        assert json.loads(await grpcurl(address, "grpc.health.v1.Health/Check"))["status"] == "SERVING"
