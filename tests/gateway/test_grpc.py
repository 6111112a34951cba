"""gRPC passes through the REST ports: calls, health, reflection; other services' calls do not."""

import asyncio
import sys
from pathlib import Path

import grpc
import pytest
from aivo.brain.v1 import adapter_service_pb2, adapter_service_pb2_grpc, brain_service_pb2_grpc
from aivo.brain.v1 import brain_service_pb2 as brain_pb
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from testing.parts.envoy import Edge
from testing.scripted.brain_server import BRAIN
from testing.scripted.cloning_server import CLONING
from testing.scripted.script import Script, failure


async def test_calls_pass_with_their_deadline_and_metadata(brain_channel: grpc.aio.Channel, brain: Script) -> None:
    stub = brain_service_pb2_grpc.BrainServiceStub(brain_channel)

    reply = await stub.Generate(
        brain_pb.GenerateRequest(prompt="Why?"), timeout=6.9, metadata=[("x-student-id", "student123")]
    )

    assert reply.response == "Plants make food."
    (call,) = brain.calls
    assert call.seconds_left is not None
    # gRPC rounds a deadline of some seconds up to hundredths.
    assert 5 < call.seconds_left <= 7
    assert call.metadata["x-student-id"] == "student123"


async def test_streams_pass_message_by_message(brain_channel: grpc.aio.Channel, brain: Script) -> None:
    brain.hold.clear()
    stream = brain_service_pb2_grpc.BrainServiceStub(brain_channel).GenerateStream(
        brain_pb.GenerateStreamRequest(prompt="Why?")
    )

    messages = aiter(stream)
    first = await anext(messages)
    brain.hold.set()
    rest = [message async for message in messages]

    assert [first.sequence, *(message.sequence for message in rest)] == [1, 2, 3, 4]


async def test_an_error_passes_with_its_details(brain_channel: grpc.aio.Channel, brain: Script) -> None:
    brain.failures.append(failure(grpc.StatusCode.NOT_FOUND, "STUDENT_MODEL_NOT_FOUND", student_id="student123"))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await brain_service_pb2_grpc.BrainServiceStub(brain_channel).Generate(brain_pb.GenerateRequest(prompt="Why?"))

    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    status = rpc_status.from_call(caught.value)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    detail: Any = status.details[0]
    assert detail.Unpack(info)
    assert (info.reason, info.metadata["student_id"]) == ("STUDENT_MODEL_NOT_FOUND", "student123")


async def test_health_is_checked_and_watched_through_the_gateway(
    brain_channel: grpc.aio.Channel, brain: Script
) -> None:
    stub = health_pb2_grpc.HealthStub(brain_channel)
    request = health_pb2.HealthCheckRequest(service=BRAIN)

    checked = await stub.Check(request)
    watch = stub.Watch(request)
    watched = await watch.read()
    watch.cancel()

    assert checked.status == watched.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_service_between_servers_is_not_exposed(brain_channel: grpc.aio.Channel, brain: Script) -> None:
    stub = adapter_service_pb2_grpc.AdapterServiceStub(brain_channel)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListAdapters(adapter_service_pb2.ListAdaptersRequest())

    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_grpcurl_lists_and_calls_by_reflection(edge: Edge, brain: Script, cloning: Script) -> None:
    assert BRAIN in await grpcurl(edge.brain_address, "list")
    assert CLONING in await grpcurl(edge.cloning_address, "list")
    assert '"status": "healthy"' in await grpcurl(edge.cloning_address, f"{CLONING}/GetHealth")


async def grpcurl(address: str, *words: str) -> str:
    """What the real grpcurl prints."""
    program = Path(sys.executable).with_name("grpcurl")
    process = await asyncio.create_subprocess_exec(
        program, "-plaintext", address, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output
    return output.decode()
