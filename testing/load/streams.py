"""A thousand streams at once, half of them hung up on: what a test and a benchmark put a brain through."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BrainUnderLoad:
    """A brain, called through its ports.

    Attributes:
        stub: Of its BrainService.
        adapters: Of its AdapterService.
        metrics_url: Where its figures are.
        students: All of whom have an adapter.
    """

    stub: "BrainServiceAsyncStub"
    adapters: "AdapterServiceAsyncStub"
    metrics_url: str
    students: Sequence[str]

    async def figures(self) -> dict[str, float]:
        """Its figures without labels."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(self.metrics_url)).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {sample.name: sample.value for sample in samples if not sample.labels}


async def round_of_streams(brain: BrainUnderLoad, *, seed: int) -> None:
    """Opens them all, cancels half of them at some moment, and sees that the rest complete and all is as before."""
    chance = random.Random(seed)
    leaving = set(chance.sample(range(STREAMS), STREAMS // 2))
    everyone_is_in = asyncio.Event()

    async def leave(number: int, listening: asyncio.Task[str]) -> None:
        """Hangs up while the stream still waits for its turn, or decodes."""
        await everyone_is_in.wait()
        await asyncio.sleep(chance.random())
        listening.cancel()

    patience = [chance.choice((0, 1, 20)) if number in leaving else None for number in range(STREAMS)]
    listening = [asyncio.create_task(_listen(brain, number, patience[number])) for number in range(STREAMS)]
    hanging_up = [asyncio.create_task(leave(number, listening[number])) for number in sorted(leaving)[::2]]
    await until(lambda: _most_wait(brain))
    everyone_is_in.set()
    await asyncio.wait(listening)
    await asyncio.gather(*hanging_up)

    texts: dict[str, set[str]] = {}
    for number, one in enumerate(listening):
        if number not in leaving:
            texts.setdefault(_student_of(brain, number), set()).add(one.result())
    # Everyone who stayed heard the whole of their own student's reply, and each student's is their own.
    assert all(len(heard) == 1 for heard in texts.values())
    assert len({text for heard in texts.values() for text in heard}) == len(texts)
    assert sum(one.cancelled() for one in listening) > STREAMS // 4
    await until(lambda: _is_idle(brain))
    listed = await brain.adapters.ListAdapters(ListAdaptersRequest())
    assert sum(one.leases for one in listed.adapters) == 0
    assert len(listed.adapters) >= len(brain.students) // 2


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Lets the tasks run until something holds."""
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def _listen(brain: BrainUnderLoad, number: int, patience: int | None) -> str:
    """Hears a reply, and hangs up on it once it has so many characters, if patience is bounded."""
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
        if patience is not None and len(text) >= patience:
            call.cancel()
        if message.HasField("finished"):
            assert message.finished.response == text
            assert message.finished.usage.completion_tokens <= TOKENS
    return text


def _student_of(brain: BrainUnderLoad, number: int) -> str:
    """Every tenth asks the base model."""
    return "" if number % 10 == 0 else brain.students[number % len(brain.students)]


async def _most_wait(brain: BrainUnderLoad) -> bool:
    return (await brain.figures())["aivo_engine_waiting"] > STREAMS // 2


async def _is_idle(brain: BrainUnderLoad) -> bool:
    figures = await brain.figures()
    return figures["aivo_engine_waiting"] == figures["aivo_engine_running"] == 0
