"""Channels call again where that helps, and never for ever."""

import asyncio

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1 import brain_service_pb2_grpc as pb_grpc

from mesh.errors import AivoError, InvalidField, ModelNotLoaded, Violation
from mesh.rpc.calls import Context
from mesh.rpc.channels import open_channel
from mesh.rpc.server import Server
from tests.mesh.rpc.conftest import Logs, ScriptedBrain, serving


class Flaky:
    """Fails some times, then answers."""

    def __init__(self, brain: ScriptedBrain, error: AivoError, *, failures: int) -> None:
        self.calls = 0
        self._error = error
        self._failures = failures
        brain.generate = self._generate

    async def _generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return pb.GenerateResponse(response="at last")


async def test_a_call_is_repeated_while_the_server_is_unavailable(brain: ScriptedBrain, server: Server) -> None:
    flaky = Flaky(brain, ModelNotLoaded("loading"), failures=2)
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        response = await pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="Why?"))
    assert (response.response, flaky.calls) == ("at last", 3)


async def test_a_call_that_is_wrong_in_itself_is_not_repeated(brain: ScriptedBrain, server: Server) -> None:
    flaky = Flaky(brain, InvalidField([Violation("prompt", "must not be empty")]), failures=1)
    async with open_channel(f"127.0.0.1:{server.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="Why?"))
    assert flaky.calls == 1


async def test_a_call_made_while_the_server_is_down_is_answered_once_it_is_back(
    brain: ScriptedBrain, logs: Logs
) -> None:
    async with serving(brain) as server:
        port = server.port
    async with open_channel(f"127.0.0.1:{port}") as channel:
        call = pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="hello"))
        while (state := channel.get_state()) is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            await asyncio.wait_for(channel.wait_for_state_change(state), 5)
        async with serving(brain, port=port):
            assert (await call).response == "hello"


async def test_a_unary_call_without_a_timeout_gets_the_channels(brain: ScriptedBrain, server: Server) -> None:
    async def generate(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        await asyncio.Event().wait()
        raise AssertionError

    brain.generate = generate
    async with open_channel(f"127.0.0.1:{server.port}", timeout_seconds=0.2) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="Why?"))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_callers_own_timeout_comes_first(brain: ScriptedBrain, server: Server) -> None:
    remaining: list[float | None] = []

    async def generate(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        remaining.append(context.time_remaining())
        return pb.GenerateResponse()

    brain.generate = generate
    async with open_channel(f"127.0.0.1:{server.port}", timeout_seconds=5) as channel:
        await pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="Why?"), timeout=100)
    (seconds,) = remaining
    assert seconds is not None
    assert 50 < seconds <= 101
