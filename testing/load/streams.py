"""A thousand streams at once, half of them cancelled: the load that a test and a benchmark share."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.adapter_service_pb2 import ListAdaptersRequest
from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

STREAMS = 1_000
TOKENS = 6
# A busy machine decodes streams as fast as it opens them. Once their number has not grown for this long, all are open.
_PLATEAU_SECONDS = 3.0
# One event loop may serve the metrics and a thousand streams.
_METRICS_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainUnderLoad:
    """A running brain, called through its ports.

    Attributes:
        stub: Stub of its BrainService.
        adapters: Stub of its AdapterService.
        metrics_url: URL of its metrics.
        students: Ids of students who all have an adapter.
    """

    stub: "BrainServiceAsyncStub"
    adapters: "AdapterServiceAsyncStub"
    metrics_url: str
    students: Sequence[str]

    async def metrics(self) -> dict[str, float]:
        """Returns the values of its metrics without labels, by name."""
        async with httpx.AsyncClient(timeout=_METRICS_SECONDS) as client:
            text = (await client.get(self.metrics_url)).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {sample.name: sample.value for sample in samples if not sample.labels}


async def run_round(brain: BrainUnderLoad, *, seed: int) -> None:
    """Opens all streams and cancels half of them at random moments.

    Asserts that every other stream gets the whole reply of its own student, and that the brain is idle afterwards.
    """
    rng = random.Random(seed)
    cancelled_numbers = set(rng.sample(range(STREAMS), STREAMS // 2))
    all_streams_are_open = asyncio.Event()

    async def cancel(stream: asyncio.Task[str]) -> None:
        """Cancels while the stream still waits for its turn, or is decoded."""
        await all_streams_are_open.wait()
        await asyncio.sleep(rng.random())
        stream.cancel()

    character_limits = [rng.choice((0, 1, 20)) if number in cancelled_numbers else None for number in range(STREAMS)]
    streams = [asyncio.create_task(_receive(brain, number, character_limits[number])) for number in range(STREAMS)]
    cancellations = [asyncio.create_task(cancel(streams[number])) for number in sorted(cancelled_numbers)[::2]]
    await _wait_for_queue(brain)
    all_streams_are_open.set()
    await asyncio.wait(streams)
    await asyncio.gather(*cancellations)

    texts_of_student: dict[str, set[str]] = {}
    for number, stream in enumerate(streams):
        if number not in cancelled_numbers:
            texts_of_student.setdefault(_student_of(brain, number), set()).add(stream.result())
    # A student's streams all got the same reply, and no two students got the same.
    assert all(len(texts) == 1 for texts in texts_of_student.values())
    assert len({text for texts in texts_of_student.values() for text in texts}) == len(texts_of_student)
    assert sum(stream.cancelled() for stream in streams) > STREAMS // 4
    await until(lambda: _is_idle(brain))
    response = await brain.adapters.ListAdapters(ListAdaptersRequest())
    assert sum(adapter.leases for adapter in response.adapters) == 0
    assert len(response.adapters) >= len(brain.students) // 2


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Lets other tasks run until the condition holds. Raises `TimeoutError` after a minute."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.01)


async def _receive(brain: BrainUnderLoad, number: int, character_limit: int | None) -> str:
    """Receives a reply. Cancels the call once the text has as many characters as the limit, if there is one."""
    call = brain.stub.GenerateStream(
        pb.GenerateStreamRequest(
            prompt="Hi!",
            context=pb.StudentContext(student_id=_student_of(brain, number)),
            temperature=0,
            max_tokens=TOKENS,
        )
    )
    text = ""
    async for message in call:
        text += message.text
        if character_limit is not None and len(text) >= character_limit:
            call.cancel()
        if message.HasField("finished"):
            assert message.finished.response == text
            assert message.finished.usage.completion_tokens <= TOKENS
    return text


def _student_of(brain: BrainUnderLoad, number: int) -> str:
    """Returns the student of a stream. Every tenth stream has none, and is answered by the base model."""
    return "" if number % 10 == 0 else brain.students[number % len(brain.students)]


async def _wait_for_queue(brain: BrainUnderLoad) -> None:
    """Returns once most streams wait for their turn, or the number that waits no longer grows."""
    loop = asyncio.get_running_loop()
    peak, peak_at = 0.0, loop.time()

    async def is_long_enough() -> bool:
        nonlocal peak, peak_at
        waiting_count = (await brain.metrics())["aivo_engine_waiting"]
        if waiting_count > peak:
            peak, peak_at = waiting_count, loop.time()
        return peak > STREAMS // 2 or (peak > 0 and loop.time() - peak_at > _PLATEAU_SECONDS)

    await until(is_long_enough)


async def _is_idle(brain: BrainUnderLoad) -> bool:
    metrics = await brain.metrics()
    return metrics["aivo_engine_waiting"] == metrics["aivo_engine_running"] == 0
