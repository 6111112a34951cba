"""How a server starts, says how it is, and ends."""

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1 import brain_service_pb2_grpc as pb_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from mesh.background import BackgroundTask, TaskFailed
from mesh.errors import ServerDraining
from mesh.rpc.calls import Context
from mesh.rpc.errors import error_of
from mesh.rpc.health import LIVENESS
from mesh.rpc.interceptor import MAX_REQUEST_BYTES
from mesh.rpc.ports import PortTaken
from mesh.rpc.server import Server
from tests.mesh.rpc.conftest import SERVICE, BrainStub, Logs, ScriptedBrain, calling, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Paced:
    """A stream whose second message waits to be let go."""

    def __init__(self, brain: ScriptedBrain) -> None:
        self.go_on = asyncio.Event()
        brain.stream = self._stream

    async def _stream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        yield pb.GenerateStreamResponse(sequence=1, text="one")
        await self.go_on.wait()
        yield pb.GenerateStreamResponse(sequence=2, text="two")


async def watching(channel: grpc.aio.Channel) -> Any:
    """A watch of the service's health that has seen it serve."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    assert (await watch.read()).status == SERVING
    return watch


async def refusal_of(stub: BrainStub) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt="Why?"))
    return error_of(caught.value)


@pytest.mark.parametrize("service", [SERVICE, ""])
async def test_health_follows_what_the_service_says_of_itself(
    service: str, brain: ScriptedBrain, server: Server
) -> None:
    async with calling(server) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await watch.read()).status == SERVING
        brain.ready = False
        assert (await asyncio.wait_for(watch.read(), 2)).status == NOT_SERVING
        brain.ready = True
        assert (await asyncio.wait_for(watch.read(), 2)).status == SERVING
        watch.cancel()


async def test_health_is_right_from_the_first_check(brain: ScriptedBrain, logs: Logs) -> None:
    brain.ready = False
    async with serving(brain) as server, calling(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status == NOT_SERVING


async def test_a_drain_lets_running_calls_finish_and_refuses_new_ones(
    brain: ScriptedBrain, server: Server, channel: grpc.aio.Channel
) -> None:
    paced, stub = Paced(brain), pb_grpc.BrainServiceStub(channel)
    watch = await watching(channel)
    running = stub.GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
    assert (await anext(aiter(running))).text == "one"
    stopping = asyncio.create_task(server.stop())
    assert (await watch.read()).status == NOT_SERVING
    assert server.draining
    assert isinstance(await refusal_of(stub), ServerDraining)
    # It tells people that the server drains, so it must answer.
    assert (await stub.GetHealth(pb.GetHealthRequest())).status == "healthy"
    assert not stopping.done()
    paced.go_on.set()
    assert [message.text async for message in running] == ["two"]
    assert await running.code() is grpc.StatusCode.OK
    await asyncio.wait_for(stopping, 5)


async def test_calls_that_outlast_the_drain_are_told_so(brain: ScriptedBrain, logs: Logs) -> None:
    Paced(brain)
    async with serving(brain, drain_seconds=0.05) as server, calling(server) as channel:
        running = pb_grpc.BrainServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
        assert (await anext(aiter(running))).text == "one"
        await asyncio.wait_for(server.stop(), 5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(running))
    assert isinstance(error_of(caught.value), ServerDraining)
    assert logs.of("call", code="UNAVAILABLE", reason="SERVER_DRAINING", messages=1)


async def test_a_server_that_stopped_takes_no_calls_and_can_be_stopped_again(server: Server, stub: BrainStub) -> None:
    await asyncio.gather(server.stop(), server.stop())
    await server.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt="Why?"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_server_and_ends_it(
    number: signal.Signals, brain: ScriptedBrain, server: Server, channel: grpc.aio.Channel
) -> None:
    paced, stub = Paced(brain), pb_grpc.BrainServiceStub(channel)
    ending = asyncio.create_task(server.serve_until_signal())
    watch = await watching(channel)
    running = stub.GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
    assert (await anext(aiter(running))).text == "one"
    os.kill(os.getpid(), number)
    assert (await watch.read()).status == NOT_SERVING
    assert not ending.done()
    paced.go_on.set()
    assert [message.text async for message in running] == ["two"]
    assert gc.get_freeze_count()
    await asyncio.wait_for(ending, 5)
    assert not gc.get_freeze_count()


async def test_a_second_signal_cuts_the_drain_short(
    brain: ScriptedBrain, server: Server, channel: grpc.aio.Channel
) -> None:
    Paced(brain)
    stub = pb_grpc.BrainServiceStub(channel)
    ending = asyncio.create_task(server.serve_until_signal())
    watch = await watching(channel)
    running = stub.GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
    assert (await anext(aiter(running))).text == "one"
    os.kill(os.getpid(), signal.SIGTERM)
    assert (await watch.read()).status == NOT_SERVING
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(running))
    assert isinstance(error_of(caught.value), ServerDraining)
    await asyncio.wait_for(ending, 5)


async def test_a_service_that_cannot_say_how_it_is_ends_the_server(brain: ScriptedBrain, logs: Logs) -> None:
    ready_count = 0

    def ready() -> bool:
        nonlocal ready_count
        ready_count += 1
        if ready_count > 2:
            raise LookupError
        return True

    server = Server(host="127.0.0.1", port=0, metrics_port=None, drain_seconds=1)
    server.add(pb_grpc.add_BrainServiceServicer_to_server, brain, service=SERVICE, ready=ready)
    with pytest.raises(TaskFailed) as caught:
        await asyncio.wait_for(server.serve_until_signal(), 5)
    assert isinstance(caught.value.__cause__, LookupError)
    assert logs.of("background_task_failed", task="Health")


class Crashing(BackgroundTask):
    """Crashes once it is told to; every crash is final."""

    max_restarts = 0

    def __init__(self) -> None:
        self.shall_crash = asyncio.Event()

    async def _run(self) -> None:
        await self.shall_crash.wait()
        raise ValueError("a bug")


async def test_a_background_task_that_fails_drains_the_server_and_ends_it(brain: ScriptedBrain, logs: Logs) -> None:
    paced, task = Paced(brain), Crashing()
    server = Server(host="127.0.0.1", port=0, metrics_port=None, drain_seconds=5)
    server.add(pb_grpc.add_BrainServiceServicer_to_server, brain, service=SERVICE, ready=lambda: brain.ready)

    async def serve() -> None:
        async with server.watch(task):
            await server.serve_until_signal()

    await server.start()
    ending = asyncio.create_task(serve())
    async with calling(server) as channel:
        watches = [
            health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))
            for service in (SERVICE, "", LIVENESS)
        ]
        assert [(await watch.read()).status for watch in watches] == [SERVING] * 3
        running = pb_grpc.BrainServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
        assert (await anext(aiter(running))).text == "one"
        task.shall_crash.set()
        assert [(await watch.read()).status for watch in watches] == [NOT_SERVING] * 3
        assert server.task_faults == ("Crashing crashed (ValueError) and does not start again",)
        metrics = generate_latest(server.registry).decode()
        paced.go_on.set()
        assert [message.text async for message in running] == ["two"]
        for watch in watches:
            watch.cancel()
    with pytest.raises(TaskFailed):
        await asyncio.wait_for(ending, 10)
    assert 'aivo_background_running{task="Crashing"} 0.0' in metrics
    assert 'aivo_background_running{task="Health"} 1.0' in metrics
    assert f'aivo_serving{{service="{LIVENESS}"}} 0.0' in metrics
    assert f'aivo_serving{{service="{SERVICE}"}} 0.0' in metrics


async def test_a_server_that_is_not_ready_or_drains_is_alive(brain: ScriptedBrain, logs: Logs) -> None:
    paced = Paced(brain)
    brain.ready = False
    async with serving(brain) as server, calling(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def statuses() -> list[int]:
            requests = [health_pb2.HealthCheckRequest(service=service) for service in ("", LIVENESS)]
            return [(await health.Check(request)).status for request in requests]

        assert await statuses() == [NOT_SERVING, SERVING]
        running = pb_grpc.BrainServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
        assert (await anext(aiter(running))).text == "one"
        stopping = asyncio.create_task(server.stop())
        while not server.draining:  # noqa: ASYNC110 - the drain sets nothing else
            await asyncio.sleep(0)
        assert await statuses() == [NOT_SERVING, SERVING]
        paced.go_on.set()
        await stopping


async def test_a_port_that_is_taken_is_named(brain: ScriptedBrain, server: Server) -> None:
    with pytest.raises(PortTaken, match=f"127.0.0.1:{server.port} is taken by another process"):
        async with serving(brain, port=server.port, metrics_port=0):
            pass


async def test_a_metrics_port_that_is_taken_is_named(brain: ScriptedBrain) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port} is taken by another process"):
            async with serving(brain, metrics_port=port):
                pass


async def test_no_call_of_a_burst_is_lost(brain: ScriptedBrain, logs: Logs) -> None:
    async with serving(brain, caller_limit=2_000) as server, calling(server) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        answers = await asyncio.gather(*(stub.Generate(pb.GenerateRequest(prompt="Why?")) for _ in range(2_000)))
    assert {answer.response for answer in answers} == {"Why?"}


async def test_an_address_that_is_not_ours_is_named() -> None:
    server = Server(host="192.0.2.1", port=50051, metrics_port=None, drain_seconds=1)
    with pytest.raises(OSError, match=r"can't listen on 192\.0\.2\.1:50051: ."):
        await server.start()


async def test_a_port_is_free_again_once_the_server_stopped(brain: ScriptedBrain, logs: Logs) -> None:
    async with serving(brain, metrics_port=0) as server:
        port, metrics_port = server.port, server.metrics_port
    async with serving(brain, port=port, metrics_port=metrics_port) as again:
        assert (again.port, again.metrics_port) == (port, metrics_port)


async def test_two_servers_fit_into_one_process(brain: ScriptedBrain, logs: Logs) -> None:
    async with serving(brain, metrics_port=0) as first, serving(brain, metrics_port=0) as second:
        assert first.port != second.port
        async with calling(first) as channel:
            response = await pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="hello"))
        assert response.response == "hello"


async def test_a_request_may_be_as_large_as_the_limit_and_no_larger(stub: BrainStub) -> None:
    for size, code in (
        # It is read, and then refused for its prompt.
        (MAX_REQUEST_BYTES - 16, grpc.StatusCode.INVALID_ARGUMENT),
        (MAX_REQUEST_BYTES, grpc.StatusCode.INVALID_ARGUMENT),
        (2 * MAX_REQUEST_BYTES, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(pb.GenerateRequest(prompt="x" * size))
        assert caught.value.code() is code


@pytest.mark.slow
async def test_a_long_call_of_a_caller_that_pings_every_ten_seconds_goes_on(brain: ScriptedBrain, logs: Logs) -> None:
    async def answer_late(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        # gRPC hangs up at the third ping that comes too early.
        await asyncio.sleep(45)
        return pb.GenerateResponse(response="late")

    brain.generate = answer_late
    options = (("grpc.keepalive_time_ms", 10_000), ("grpc.http2.max_pings_without_data", 0))
    async with (
        serving(brain) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel,
    ):
        response = await pb_grpc.BrainServiceStub(channel).Generate(pb.GenerateRequest(prompt="Why?"), timeout=120)
    assert response.response == "late"
