"""What stops a request: its caller, its deadline, a full queue."""

import asyncio
import time
from contextlib import AsyncExitStack, aclosing

import pytest

from brain_server.engine.contract import (
    Delta,
    complete,
)
from brain_server.torch_engine.engine import TorchEngine
from mesh.errors import (
    DeadlineExceeded,
    QueueFull,
)
from tests.brain_server.torch_engine.requests import greedy
from tests.brain_server.torch_engine.waiting import until


async def test_closing_a_stream_stops_decoding_within_a_token_and_the_next_request_runs(
    torch_engine: TorchEngine,
) -> None:
    tokens_before = torch_engine.counts.tokens
    stream = torch_engine.stream(greedy(max_tokens=1000))
    await anext(stream)
    await stream.aclose()
    tokens_at_close = torch_engine.counts.tokens
    reply = await complete(torch_engine, greedy(max_tokens=3))
    assert reply.completion_tokens == 3
    # The delta that was received, and at most the token that was being decoded then.
    assert tokens_at_close - tokens_before <= 3
    # Only the reply was decoded since then: the closed stream left no work behind.
    assert torch_engine.counts.tokens == tokens_at_close + 3
    assert torch_engine.counts.waiting == 0


async def test_cancelling_a_queued_call_frees_its_place(narrow_engine: TorchEngine) -> None:
    async with aclosing(narrow_engine.stream(greedy(max_tokens=1000))) as stream:
        await anext(stream)
        queued_call = asyncio.create_task(complete(narrow_engine, greedy()))
        await until(lambda: narrow_engine.counts.waiting == 1)
        queued_call.cancel()
        await asyncio.wait([queued_call])
        assert narrow_engine.counts.waiting == 0


async def test_a_full_queue_is_an_error_at_once_that_says_when_to_retry(narrow_engine: TorchEngine) -> None:
    async with AsyncExitStack() as stack:
        stream = await stack.enter_async_context(aclosing(narrow_engine.stream(greedy(max_tokens=1000))))
        await anext(stream)
        queued_calls = [asyncio.create_task(complete(narrow_engine, greedy(max_tokens=2))) for _ in range(2)]
        await until(lambda: narrow_engine.counts.waiting == 2)
        with pytest.raises(QueueFull) as error:
            await complete(narrow_engine, greedy())
        assert error.value.retry_seconds > 0
        await stream.aclose()
        assert [reply.completion_tokens for reply in await asyncio.gather(*queued_calls)] == [2, 2]


async def test_a_request_whose_deadline_has_passed_decodes_nothing(narrow_engine: TorchEngine) -> None:
    tokens_before = narrow_engine.counts.tokens
    with pytest.raises(DeadlineExceeded):
        await complete(narrow_engine, greedy(deadline=time.monotonic() - 1))
    assert narrow_engine.counts.tokens == tokens_before


async def test_a_deadline_that_passes_in_the_queue_ends_the_request_then(narrow_engine: TorchEngine) -> None:
    async with aclosing(narrow_engine.stream(greedy(max_tokens=1000))) as stream:
        await anext(stream)
        with pytest.raises(DeadlineExceeded):
            await complete(narrow_engine, greedy(deadline=time.monotonic() + 0.1))
        # The request in front still runs, so the error did not wait for its end.
        assert isinstance(await anext(stream), Delta)


async def test_a_deadline_that_passes_while_decoding_stops_it(torch_engine: TorchEngine) -> None:
    tokens_before = torch_engine.counts.tokens
    with pytest.raises(DeadlineExceeded):
        await complete(torch_engine, greedy(max_tokens=4000, deadline=time.monotonic() + 1))
    assert torch_engine.counts.tokens - tokens_before < 1000
