"""What one caller may hold: calls at a time, and connections without a call."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1 import brain_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from mesh.errors import QueueFull
from mesh.rpc.calls import Context
from mesh.rpc.errors import error_of
from mesh.rpc.server import Server
from testing.waiting import until
from tests.mesh.rpc.conftest import SERVICE, BrainStub, Logs, ScriptedBrain, calling, serving

WHY = pb.GenerateStreamRequest(prompt="Why?")


@pytest.fixture
async def narrow(brain: ScriptedBrain, logs: Logs) -> AsyncIterator[Server]:
    """A server that lets a caller have two calls, whose streams do not end by themselves."""

    async def stream(request: pb.GenerateStreamRequest, context: Context) -> AsyncIterator[pb.GenerateStreamResponse]:
        yield pb.GenerateStreamResponse(sequence=1, text="one")
        await asyncio.Event().wait()

    brain.stream = stream
    async with serving(brain, caller_limit=2, drain_seconds=0) as server:
        yield server


async def hold(stub: BrainStub, *, forwarded_for: str = "") -> Any:
    """A stream that has begun. It ends when nobody keeps it."""
    metadata = (("x-forwarded-for", forwarded_for),) if forwarded_for else ()
    stream = stub.GenerateStream(WHY, metadata=metadata)
    assert (await anext(aiter(stream))).text == "one"
    return stream


async def refusal_of(call: Any) -> QueueFull:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (anext(aiter(call)) if hasattr(call, "__aiter__") else call)
    error = error_of(caught.value)
    assert isinstance(error, QueueFull)
    return error


async def test_a_caller_has_so_many_calls_at_a_time_over_all_connections(narrow: Server, logs: Logs) -> None:
    async with calling(narrow) as channel, calling(narrow) as another_channel:
        stub, another_stub = pb_grpc.BrainServiceStub(channel), pb_grpc.BrainServiceStub(another_channel)
        stream, other_stream = await hold(stub), await hold(another_stub)
        for call in (stub.GenerateStream(WHY), another_stub.Generate(pb.GenerateRequest(prompt="Why?"))):
            error = await refusal_of(call)
            assert str(error) == "one caller may have 2 calls at a time; wait until one of them ends"
            assert (error.facts, error.retry_seconds) == ({"limit": "2"}, 1)
        assert len(logs.of("call", code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL")) == 2

        async def has_ended() -> bool:
            return bool(logs.of("call", code="CANCELLED"))

        stream.cancel()
        await until(has_ended, seconds=10)
        await hold(stub)
        assert not other_stream.done()


async def test_callers_behind_a_gateway_are_told_apart_by_the_address_that_it_saw(narrow: Server) -> None:
    async with calling(narrow) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        # What stands before the last comma is what the caller said itself.
        streams = [await hold(stub, forwarded_for=text) for text in ("192.0.2.1", "198.51.100.9, 192.0.2.1")]
        for forwarded_for in ("192.0.2.1", "203.0.113.5,192.0.2.1"):
            await refusal_of(stub.GenerateStream(WHY, metadata=(("x-forwarded-for", forwarded_for),)))
        streams += [await hold(stub, forwarded_for="192.0.2.2"), await hold(stub)]
        assert not any(stream.done() for stream in streams)


@pytest.mark.parametrize(
    "call",
    [
        lambda channel: health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE)),
        lambda channel: channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(list_services="")])),
    ],
    ids=["watches of health", "reflection"],
)
async def test_streams_of_grpcs_own_services_count(narrow: Server, call: Callable[[grpc.aio.Channel], Any]) -> None:
    async with calling(narrow) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        stream = await hold(stub)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert await watch.read()
        await refusal_of(call(channel))
        await refusal_of(stub.GenerateStream(WHY))
        assert not stream.done()
        watch.cancel()


async def test_health_is_told_to_a_caller_that_may_have_no_more_calls(narrow: Server) -> None:
    async with calling(narrow) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        streams = [await hold(stub) for _ in range(2)]
        assert (await stub.GetHealth(pb.GetHealthRequest())).status == "healthy"
        check = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        assert not any(stream.done() for stream in streams)


async def test_a_connection_without_a_call_is_closed_and_opens_again_for_the_next(
    brain: ScriptedBrain, logs: Logs
) -> None:
    async with serving(brain, idle_seconds=1) as server, calling(server) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        for _ in range(2):
            assert (await stub.Generate(pb.GenerateRequest(prompt="Why?"))).response == "Why?"
            async with asyncio.timeout(20):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
