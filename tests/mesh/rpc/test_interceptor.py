"""What stands around every call: id, log line, figures, deadline, cancellation."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import httpx
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1 import brain_service_pb2_grpc as pb_grpc

from mesh.errors import ModelNotLoaded, StudentModelNotFound
from mesh.rpc.calls import Context, call_id, deadline_of
from mesh.rpc.server import Server
from tests.mesh.rpc.conftest import SERVICE, BrainStub, Logs, ScriptedBrain, calling, serving

SECRET = "my dog died on Tuesday"  # what a student might write


async def trailer_of(call: Awaitable[object], key: str = "x-request-id") -> object:
    await call
    assert isinstance(call, grpc.aio.UnaryUnaryCall)
    return (await call.trailing_metadata())[key]


async def test_a_call_keeps_the_id_that_came_with_it(brain: ScriptedBrain, stub: BrainStub) -> None:
    async def generate(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        return pb.GenerateResponse(response=call_id())

    brain.generate = generate
    metadata = (("x-request-id", "8a0c2d1e-from-envoy"),)
    assert (await stub.Generate(pb.GenerateRequest(prompt="Why?"), metadata=metadata)).response == "8a0c2d1e-from-envoy"
    assert (
        await trailer_of(stub.Generate(pb.GenerateRequest(prompt="Why?"), metadata=metadata)) == "8a0c2d1e-from-envoy"
    )


@pytest.mark.parametrize("unfit", ["", "a b", "x" * 65, "id=1"])
async def test_an_id_that_does_not_belong_into_a_log_is_replaced(unfit: str, stub: BrainStub) -> None:
    call_id = await trailer_of(stub.Generate(pb.GenerateRequest(prompt="Why?"), metadata=(("x-request-id", unfit),)))
    assert isinstance(call_id, str)
    assert len(call_id) == 16


async def test_an_error_carries_the_id_too(brain: ScriptedBrain, stub: BrainStub) -> None:
    brain.raises(ModelNotLoaded("loading"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt="Why?"), metadata=(("x-request-id", "abc"),))
    assert caught.value.trailing_metadata()["x-request-id"] == "abc"


async def test_each_call_is_one_log_line_without_content(brain: ScriptedBrain, logs: Logs) -> None:
    async with serving(brain) as server, calling(server) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        await stub.Generate(pb.GenerateRequest(prompt=SECRET), metadata=(("x-request-id", "one"),))
        stream = stub.GenerateStream(pb.GenerateStreamRequest(prompt=SECRET), metadata=(("x-request-id", "two"),))
        assert [message.text async for message in stream] == SECRET.split()
        brain.raises(StudentModelNotFound(student_id="student123"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Generate(pb.GenerateRequest(prompt=SECRET), metadata=(("x-request-id", "three"),))
    unary_line, stream_line, error_line = logs.of("call")
    assert (unary_line["call_id"], unary_line["method"]) == ("one", "aivo.brain.v1.BrainService/Generate")
    assert (unary_line["code"], unary_line["messages"]) == ("OK", 1)
    assert unary_line["duration_ms"] > 0
    assert "reason" not in unary_line
    assert (stream_line["call_id"], stream_line["code"], stream_line["messages"]) == ("two", "OK", 5)
    assert 0 < stream_line["first_message_ms"] <= stream_line["duration_ms"]
    assert (error_line["call_id"], error_line["code"], error_line["reason"]) == (
        "three",
        "NOT_FOUND",
        "STUDENT_MODEL_NOT_FOUND",
    )
    assert not logs.of("call_failed")
    assert not any(word in logs.text for word in SECRET.split() if len(word) > 2)


class Hanging:
    """A behaviour that starts, then waits until it is stopped."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()
        self.deadline: float | None = None

    async def generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        self.deadline = deadline_of(context)
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        raise AssertionError

    async def stream(
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        self.deadline = deadline_of(context)
        self.started.set()
        try:
            yield pb.GenerateStreamResponse(sequence=1, text="one")
            await asyncio.Event().wait()
        finally:
            self.stopped.set()


@pytest.fixture
def hanging(brain: ScriptedBrain) -> Hanging:
    behaviour = Hanging()
    brain.generate, brain.stream = behaviour.generate, behaviour.stream
    return behaviour


async def test_work_stops_when_the_callers_deadline_passes(
    server: Server, stub: BrainStub, hanging: Hanging, logs: Logs
) -> None:
    before = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt="Why?"), timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(hanging.stopped.wait(), 5)
    assert hanging.deadline is not None
    assert 0.2 < hanging.deadline - before < 0.5
    await server.stop()
    assert logs.of("call", code="DEADLINE_EXCEEDED", method=f"{SERVICE}/Generate")


async def test_a_stream_stops_when_the_callers_deadline_passes(
    server: Server, stub: BrainStub, hanging: Hanging, logs: Logs
) -> None:
    call = stub.GenerateStream(pb.GenerateStreamRequest(prompt="Why?"), timeout=0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [message async for message in call]
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(hanging.stopped.wait(), 5)
    await server.stop()
    assert logs.of("call", code="DEADLINE_EXCEEDED", method=f"{SERVICE}/GenerateStream", messages=1)


async def test_a_call_without_a_deadline_has_none(stub: BrainStub, hanging: Hanging) -> None:
    call = stub.Generate(pb.GenerateRequest(prompt="Why?"))
    await asyncio.wait_for(hanging.started.wait(), 5)
    assert hanging.deadline is None
    call.cancel()


async def test_a_callers_own_timeout_inside_the_servicer_is_told_as_the_deadline(
    brain: ScriptedBrain, server: Server, stub: BrainStub, logs: Logs
) -> None:
    async def generate(request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:
        deadline = deadline_of(context)
        assert deadline is not None
        async with asyncio.timeout(deadline - time.monotonic() - 0.05):
            await asyncio.Event().wait()
        raise AssertionError

    brain.generate = generate
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(pb.GenerateRequest(prompt="Why?"), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.details() == "the deadline passed before the work was done"
    await server.stop()
    assert logs.of("call", code="DEADLINE_EXCEEDED", reason="DEADLINE_EXCEEDED")


async def test_cancelling_a_unary_call_stops_the_work(
    server: Server, stub: BrainStub, hanging: Hanging, logs: Logs
) -> None:
    call = stub.Generate(pb.GenerateRequest(prompt="Why?"))
    await asyncio.wait_for(hanging.started.wait(), 5)
    call.cancel()
    await asyncio.wait_for(hanging.stopped.wait(), 5)
    await server.stop()
    assert logs.of("call", code="CANCELLED", method=f"{SERVICE}/Generate")
    assert not logs.of("call_failed")


async def test_cancelling_a_stream_closes_the_servicers_generator(
    server: Server, stub: BrainStub, hanging: Hanging, logs: Logs
) -> None:
    call = stub.GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
    assert (await anext(aiter(call))).text == "one"
    call.cancel()
    await asyncio.wait_for(hanging.stopped.wait(), 5)
    await server.stop()
    assert logs.of("call", code="CANCELLED", method=f"{SERVICE}/GenerateStream", messages=1)
    assert not logs.of("call_failed")


async def test_a_stream_that_nobody_reads_is_closed_when_its_caller_leaves(
    brain: ScriptedBrain, server: Server, stub: BrainStub, logs: Logs
) -> None:
    stopped = asyncio.Event()

    async def stream(request: pb.GenerateStreamRequest, context: Context) -> AsyncIterator[pb.GenerateStreamResponse]:
        try:
            while True:
                yield pb.GenerateStreamResponse(text="x" * 10_000)
        finally:
            stopped.set()

    brain.stream = stream
    call = stub.GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
    assert (await anext(aiter(call))).text
    call.cancel()
    await asyncio.wait_for(stopped.wait(), 5)
    await server.stop()
    assert logs.of("call", code="CANCELLED")
    assert not logs.of("call_failed")


async def figures_of(server: Server) -> Callable[[str], float]:
    async with httpx.AsyncClient() as http:
        page = await http.get(f"http://127.0.0.1:{server.metrics_port}/metrics")
    lines = [line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}.__getitem__


async def test_figures_count_calls_by_code_and_time_them(brain: ScriptedBrain, logs: Logs) -> None:
    async with serving(brain, metrics_port=0) as server, calling(server) as channel:
        stub = pb_grpc.BrainServiceStub(channel)
        for _ in range(3):
            await stub.Generate(pb.GenerateRequest(prompt="hello"))
        stream = stub.GenerateStream(pb.GenerateStreamRequest(prompt="one two"))
        assert len([message async for message in stream]) == 2
        brain.raises(StudentModelNotFound(student_id="student123"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Generate(pb.GenerateRequest(prompt="Why?"))
        figure = await figures_of(server)
    of = 'method="{}",service="aivo.brain.v1.BrainService"'.format
    assert figure(f'aivo_rpc_calls_total{{code="OK",{of("Generate")}}}') == 3
    assert figure(f'aivo_rpc_calls_total{{code="NOT_FOUND",{of("Generate")}}}') == 1
    assert figure(f'aivo_rpc_calls_total{{code="OK",{of("GenerateStream")}}}') == 1
    assert figure(f"aivo_rpc_duration_seconds_count{{{of('Generate')}}}") == 4
    assert figure(f"aivo_rpc_first_message_seconds_count{{{of('GenerateStream')}}}") == 1
    assert figure(f"aivo_rpc_in_flight{{{of('Generate')}}}") == 0
    assert figure("process_resident_memory_bytes") > 0


async def test_figures_show_the_calls_that_run(brain: ScriptedBrain, hanging: Hanging, logs: Logs) -> None:
    async with serving(brain, metrics_port=0) as server, calling(server) as channel:
        call = pb_grpc.BrainServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(prompt="Why?"))
        assert (await anext(aiter(call))).text == "one"
        figure = await figures_of(server)
        call.cancel()
    assert figure('aivo_rpc_in_flight{method="GenerateStream",service="aivo.brain.v1.BrainService"}') == 1
