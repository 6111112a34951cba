"""Load on a brain over gRPC: replies that are streamed as a client sees them, in rounds or as they arrive by chance.

Times are the client's own: from before the call to each message.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from aivo.brain.v1.brain_service_pb2 import (
    ADAPTER_POLICY_BASE_ONLY,
    ADAPTER_POLICY_REQUIRE,
    FINISH_REASON_LENGTH,
    GenerateStreamRequest,
    StudentContext,
)

from client.brain import BrainClient
from mesh.errors import QueueFull
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

# What a reply is about; each makes a prompt of about the same length, and replies that outlast what is measured.
_THINGS = ("river", "forest", "mountain", "lighthouse", "garden", "harbor", "castle", "farm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request.

    Attributes:
        student_id: Who asks.
        question: What.
        tokens: Most that the reply may have.
        base_only: Let the base model answer in place of the student's adapter, which is required otherwise.
    """

    student_id: str
    question: str
    tokens: int
    base_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One reply, or a refusal; times in `time.perf_counter()` seconds.

    Attributes:
        asked_at: When the request was made, or was due to be made.
        first_at: When its first text came.
        ended_at: When it was complete.
        prompt_tokens: That went in.
        tokens: That came out.
        full: Whether the reply came to its full length.
        load_ms: Finding, fetching and loading the adapter, as the server tells.
        refused: Whether the brain was full.
    """

    asked_at: float
    first_at: float
    ended_at: float
    prompt_tokens: int = 0
    tokens: int = 0
    full: bool = False
    load_ms: float = 0.0
    refused: bool = False

    @property
    def first_ms(self) -> float:
        """To the first token."""
        return (self.first_at - self.asked_at) * 1e3

    @property
    def token_ms(self) -> float:
        """Between two tokens, on the mean of the reply."""
        return (self.ended_at - self.first_at) * 1e3 / max(1, self.tokens - 1)

    @property
    def total_ms(self) -> float:
        """To the end."""
        return (self.ended_at - self.asked_at) * 1e3


def question(number: int) -> str:
    """One of a few questions; with the tutor's instruction it makes a prompt of 45 tokens."""
    return f"Tell me a very long story about a {_THINGS[number % len(_THINGS)]}."


def prompt(number: int) -> Prompt:
    """The same question as the baselines render it."""
    return Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text=question(number)),))


def asks(students: Iterable[str], *, tokens: int, base_only: bool = False) -> list[Ask]:
    """A request of each student."""
    return [
        Ask(student_id=student, question=question(number), tokens=tokens, base_only=base_only)
        for number, student in enumerate(students)
    ]


async def reply(brain: BrainClient, ask: Ask, *, due_at: float | None = None) -> Sample:
    """Asks for one reply and waits for its end."""
    request = GenerateStreamRequest(
        prompt=ask.question,
        context=StudentContext(student_id=ask.student_id),
        temperature=0.0,
        max_tokens=ask.tokens,
        adapter_policy=ADAPTER_POLICY_BASE_ONLY if ask.base_only else ADAPTER_POLICY_REQUIRE,
    )
    asked_at = time.perf_counter() if due_at is None else due_at
    first_at = 0.0
    try:
        async for message in brain.stream(request):
            first_at = first_at or time.perf_counter()
            finished = message.finished
    except QueueFull:
        now = time.perf_counter()
        return Sample(asked_at=asked_at, first_at=now, ended_at=now, refused=True)
    return Sample(
        asked_at=asked_at,
        first_at=first_at,
        ended_at=time.perf_counter(),
        prompt_tokens=finished.usage.prompt_tokens,
        tokens=finished.usage.completion_tokens,
        full=finished.finish_reason == FINISH_REASON_LENGTH,
        load_ms=finished.timing.adapter_load_ms,
    )


async def together(brain: BrainClient, asks: Sequence[Ask], *, at_once: int) -> list[Sample]:
    """Asks for all of it, so many at a time: a closed loop."""
    coming = iter(asks)
    samples: list[Sample] = []

    async def one_after_another() -> None:
        # The iterator is shared: each takes the next request.
        samples.extend([await reply(brain, ask) for ask in coming])

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one_after_another())
    return samples


async def arriving(
    brain: BrainClient, draw: Callable[[random.Random], Ask], *, rate: float, seconds: float, seed: int
) -> list[Sample]:
    """Asks at moments that are independent of the replies: an open loop.

    The moments are a Poisson process, and a request's time begins when it was due: a server that falls behind can't
    make its clients ask less (Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale", 2006).

    Args:
        brain: Answers.
        draw: Makes each request.
        rate: Of arrivals, a second.
        seconds: For which there are arrivals; the last replies come later.
        seed: Of moments and requests.
    """
    chance = random.Random(seed)
    asking: list[Awaitable[Sample]] = []
    began_at = due_at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (due_at := due_at + chance.expovariate(rate)) < began_at + seconds:
            # This is the arrival process itself.
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            asking.append(group.create_task(reply(brain, draw(chance), due_at=due_at)))
    return [await task for task in asking]


def rate_of(samples: Sequence[Sample]) -> float:
    """Tokens a second, from the first request to the last reply."""
    return sum(sample.tokens for sample in samples) / span(samples)


def span(samples: Sequence[Sample]) -> float:
    """Seconds from the first request to the last reply."""
    return max(sample.ended_at for sample in samples) - min(sample.asked_at for sample in samples)


def facts(samples: Sequence[Sample]) -> dict[str, object]:
    """What the load came to: how many replies of which length."""
    answered = [sample for sample in samples if not sample.refused]
    return {
        "replies": len(answered),
        "tokens": sum(sample.tokens for sample in answered),
        "full_length": sum(sample.full for sample in answered),
        "prompt_tokens": max((sample.prompt_tokens for sample in answered), default=0),
    }
