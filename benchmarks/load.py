"""Load on a brain over gRPC: streamed replies in a closed loop or in an open loop, timed by the client.

A time runs from before the call to the arrival of a message at the client.
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

# Prompts about them have nearly the same length, and replies to them are longer than any benchmark measures.
_TOPICS = ("river", "forest", "mountain", "lighthouse", "garden", "harbor", "castle", "farm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request for a reply.

    Attributes:
        student_id: The student who asks.
        question: The student's question.
        tokens: Maximum length of the reply, in tokens.
        base_only: Whether the base model answers without an adapter; otherwise the student's adapter is required.
    """

    student_id: str
    question: str
    tokens: int
    base_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The timing of one reply or refusal; moments are in seconds of `time.perf_counter()`.

    Attributes:
        started_at: When the request was sent, or when it was due in an open loop.
        first_token_at: When the first message arrived.
        ended_at: When the reply was complete.
        prompt_tokens: Length of the prompt.
        tokens: Length of the reply.
        full: Whether the reply reached the maximum length.
        load_ms: Time to find, fetch and load the adapter, as reported by the server.
        refused: Whether the brain refused the request because its queue was full.
    """

    started_at: float
    first_token_at: float
    ended_at: float
    prompt_tokens: int = 0
    tokens: int = 0
    full: bool = False
    load_ms: float = 0.0
    refused: bool = False

    @property
    def first_token_ms(self) -> float:
        """Milliseconds to the first token."""
        return (self.first_token_at - self.started_at) * 1e3

    @property
    def token_ms(self) -> float:
        """Mean milliseconds between two tokens of the reply."""
        return (self.ended_at - self.first_token_at) * 1e3 / max(1, self.tokens - 1)

    @property
    def total_ms(self) -> float:
        """Milliseconds to the end of the reply."""
        return (self.ended_at - self.started_at) * 1e3


def question(number: int) -> str:
    """Returns one of a few questions; with the tutor's instruction it makes a prompt of 45 tokens."""
    return f"Tell me a very long story about a {_TOPICS[number % len(_TOPICS)]}."


def prompt(number: int) -> Prompt:
    """Returns the prompt of the same question, which the baselines render themselves."""
    return Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text=question(number)),))


def requests_of(students: Iterable[str], *, tokens: int, base_only: bool = False) -> list[Request]:
    """Returns one request per student, each with the next question."""
    return [
        Request(student_id=student, question=question(number), tokens=tokens, base_only=base_only)
        for number, student in enumerate(students)
    ]


async def send(brain: BrainClient, request: Request, *, due_at: float | None = None) -> Sample:
    """Sends a request and reads the reply to its end.

    Args:
        brain: The client of the brain under load.
        request: The request.
        due_at: When the request was due; times run from then. By default they run from now.
    """
    grpc_request = GenerateStreamRequest(
        prompt=request.question,
        context=StudentContext(student_id=request.student_id),
        temperature=0.0,
        max_tokens=request.tokens,
        adapter_policy=ADAPTER_POLICY_BASE_ONLY if request.base_only else ADAPTER_POLICY_REQUIRE,
    )
    started_at = time.perf_counter() if due_at is None else due_at
    first_token_at = 0.0
    try:
        async for message in brain.stream(grpc_request):
            first_token_at = first_token_at or time.perf_counter()
            finished = message.finished
    except QueueFull:
        now = time.perf_counter()
        return Sample(started_at=started_at, first_token_at=now, ended_at=now, refused=True)
    return Sample(
        started_at=started_at,
        first_token_at=first_token_at,
        ended_at=time.perf_counter(),
        prompt_tokens=finished.usage.prompt_tokens,
        tokens=finished.usage.completion_tokens,
        full=finished.finish_reason == FINISH_REASON_LENGTH,
        load_ms=finished.timing.adapter_load_ms,
    )


async def closed_loop(brain: BrainClient, requests: Sequence[Request], *, concurrency: int) -> list[Sample]:
    """Sends all requests; each of `concurrency` callers sends its next request when its last reply is complete."""
    queue = iter(requests)
    samples: list[Sample] = []

    async def call_until_empty() -> None:
        # All callers share the iterator, so each takes the next request.
        samples.extend([await send(brain, request) for request in queue])

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(call_until_empty())
    return samples


async def open_loop(
    brain: BrainClient, draw: Callable[[random.Random], Request], *, rate: float, seconds: float, seed: int
) -> list[Sample]:
    """Sends requests at moments that do not depend on the replies.

    Arrivals are a Poisson process, and the time of a request runs from when it was due: a server that falls behind
    does not slow its clients down (Schroeder, Wierman and Harchol-Balter, "Open Versus Closed: A Cautionary Tale",
    2006).

    Args:
        brain: The client of the brain under load.
        draw: Makes a request from random numbers.
        rate: Mean arrivals per second.
        seconds: How long requests arrive; their replies may end later.
        seed: Seed of the arrivals and of the requests.
    """
    chance = random.Random(seed)
    calls: list[Awaitable[Sample]] = []
    started_at = due_at = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        while (due_at := due_at + chance.expovariate(rate)) < started_at + seconds:
            # The sleep is the arrival process itself.
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            calls.append(group.create_task(send(brain, draw(chance), due_at=due_at)))
    return [await call for call in calls]


def tokens_per_second(samples: Sequence[Sample]) -> float:
    """Returns the throughput from the first request to the end of the last reply."""
    return sum(sample.tokens for sample in samples) / duration(samples)


def duration(samples: Sequence[Sample]) -> float:
    """Returns the seconds from the first request to the end of the last reply."""
    return max(sample.ended_at for sample in samples) - min(sample.started_at for sample in samples)


def facts(samples: Sequence[Sample]) -> dict[str, object]:
    """Returns the number of replies and their lengths, as facts of a figure."""
    answered = [sample for sample in samples if not sample.refused]
    return {
        "replies": len(answered),
        "tokens": sum(sample.tokens for sample in answered),
        "full_length": sum(sample.full for sample in answered),
        "prompt_tokens": max((sample.prompt_tokens for sample in answered), default=0),
    }
