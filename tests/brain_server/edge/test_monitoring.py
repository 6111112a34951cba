"""SAFETY=monitor through the real edge: replies wait for nothing, and adults are told whatever becomes of a call."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

import grpc
import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.safety.v1 import safety_pb2

from brain_server.engine.contract import Delta, Generation, Reply
from brain_server.safety.settings import SafetySettings
from mesh.errors import ModelNotLoaded, QueueFull
from testing.parts.stores import S3Endpoint
from testing.scripted.engine import PIECES
from testing.waiting import until
from tests.brain_server.edge.conftest import Served, give_guard, serve
from tests.brain_server.edge.screened_calls import SAD, request_of, request_of_stream, stream_of


@pytest.fixture
def settings() -> SafetySettings:
    return SafetySettings(safety="monitor")


async def until_flagged(served: Served, *words: str) -> None:
    """Returns once adults were told of these texts, and of no other."""

    async def are_flagged() -> bool:
        return len(served.flags) >= len(words)

    await until(are_flagged, seconds=5)
    assert sorted(flag.words for flag in served.flags) == sorted(words)


async def test_nothing_is_blocked_and_adults_are_told(screened: Served) -> None:
    screened.engine.pieces = ("You first mix it. ", "Then light it.")
    texts, finished = await stream_of(screened, "How do I make gunpowder?")
    assert texts == ["You first mix it. ", "Then light it."]
    assert finished.finish_reason == pb.FINISH_REASON_STOP
    assert finished.safety.action == safety_pb2.SAFETY_ACTION_REFUSE
    assert len(screened.flags) >= 2
    assert (await screened.brain.GetHealth(pb.GetHealthRequest())).safety == "monitor"


async def test_a_reply_does_not_wait_for_the_prompts_verdict(screened: Served) -> None:
    screened.engine.guard_hold.clear()
    call = screened.brain.GenerateStream(request_of_stream(SAD))
    messages = aiter(call)
    texts = [(await asyncio.wait_for(anext(messages), 5)).text for _ in PIECES]
    assert (texts, screened.flags) == (list(PIECES), [])
    screened.engine.guard_hold.set()
    finished = (await anext(messages)).finished
    assert (finished.response, finished.safety.alert) == ("".join(PIECES), True)
    assert [flag.words for flag in screened.flags] == [SAD]


async def test_the_guard_does_not_read_before_the_reply_has_its_first_text(
    screened: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, has_begun, may_begin = screened.engine, asyncio.Event(), asyncio.Event()
    stream = engine.stream

    async def slow_stream(generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        has_begun.set()
        await may_begin.wait()
        async with aclosing(stream(generation)) as events:
            async for event in events:
                yield event

    monkeypatch.setattr(engine, "stream", slow_stream)
    call = screened.brain.GenerateStream(request_of_stream(SAD))
    await asyncio.wait_for(has_begun.wait(), 5)
    # The server runs in this loop: what it does without waiting for the reply, it has done then.
    for _ in range(100):
        await asyncio.sleep(0)
    assert screened.flags == []
    may_begin.set()
    finished = [message async for message in call][-1].finished
    assert finished.safety.alert
    assert [flag.words for flag in screened.flags] == [SAD]


async def test_an_adult_is_told_also_if_the_caller_leaves_before_the_verdict(screened: Served) -> None:
    screened.engine.pieces = ("You first mix it. ", "Then light it.")
    screened.engine.guard_hold.clear()
    screened.engine.hold.clear()
    call = screened.brain.GenerateStream(request_of_stream(SAD))
    assert (await anext(aiter(call))).text
    call.cancel()
    await asyncio.wait_for(screened.engine.closed.wait(), 5)
    screened.engine.guard_hold.set()
    await until_flagged(screened, SAD, "You first mix it.")


async def test_an_adult_is_told_also_if_the_reply_fails(screened: Served) -> None:
    screened.engine.guard_hold.clear()
    screened.engine.error = QueueFull(limit=1, retry_seconds=1)
    with pytest.raises(grpc.aio.AioRpcError):
        await screened.brain.Generate(request_of(SAD))
    screened.engine.guard_hold.set()
    await until_flagged(screened, SAD)


async def test_a_call_that_the_engine_refuses_at_once_leaves_no_screening_behind(
    screened: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(generation: Generation) -> None:
        raise ModelNotLoaded("loading")

    monkeypatch.setattr(screened.engine, "stream", refuse)
    with pytest.raises(grpc.aio.AioRpcError):
        await screened.brain.Generate(request_of(SAD))

    async def nothing_is_screened() -> bool:
        return not any("screen" in task.get_name() for task in asyncio.all_tasks())

    await until(nothing_is_screened, seconds=5)


async def test_a_brain_that_stops_waits_for_the_verdicts(
    settings: SafetySettings, s3_endpoint: S3Endpoint, bucket: str
) -> None:
    async with AsyncExitStack() as stack:
        served = await serve(stack, s3_url=s3_endpoint.url, bucket=bucket, safety=settings)
        give_guard(served)
        served.engine.guard_hold.clear()
        call = served.brain.GenerateStream(request_of_stream(SAD))
        assert (await anext(aiter(call))).text
        call.cancel()
        asyncio.get_running_loop().call_later(0.5, served.engine.guard_hold.set)
    assert [flag.words for flag in served.flags] == [SAD]


class TestRequiredGuardBesideReplies:
    @pytest.fixture
    def settings(self) -> SafetySettings:
        return SafetySettings(safety="monitor", safety_required=True)

    async def test_a_call_that_no_guard_can_judge_is_refused_before_anything_is_sent(self, screened: Served) -> None:
        screened.engine.guard_error = ModelNotLoaded("no guard")
        call = screened.brain.GenerateStream(request_of_stream("What do plants eat?"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await anext(aiter(call))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    async def test_a_judged_reply_is_sent_whole(self, screened: Served) -> None:
        texts, finished = await stream_of(screened, SAD)
        assert ("".join(texts), finished.safety.alert) == ("".join(PIECES), True)
