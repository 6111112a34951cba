"""The stages of one reply, alike in every engine: admission, prompt, adapter, decoding.

Knows nothing of how an engine decodes.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from brain_server.adapters.choice import AdapterChoice, StudentAdapters
from brain_server.engine.admission import Admission
from brain_server.engine.contract import Delta, FinishReason, Generation, Reply, Timing
from brain_server.engine.deadline import Allowance, within

# What an engine makes of a prompt, and of an adapter's weights.
P = TypeVar("P")
C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSummary:
    """How a reply was decoded.

    Attributes:
        model: Name of the base model.
        finish_reason: Why decoding ended.
        prompt_tokens: Tokens of the whole prompt.
        completion_tokens: Tokens of the reply.
        started_at: When decoding began, in `time.monotonic()` seconds; None if the engine does not tell.
        first_token_at: When the first token came, in the same clock; None if the reply has none.
    """

    model: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    started_at: float | None
    first_token_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageTimes:
    """When a request reached each stage, in `time.monotonic()` seconds."""

    arrived_at: float
    prepared_at: float
    chosen_at: float


class ReplyDecoder(Protocol[P, C]):
    """What differs between engines."""

    async def prepare(self, generation: Generation, allowance: Allowance) -> P:
        """Prepares what decoding needs of a request, before its adapter is fetched.

        Raises:
            InvalidField: The prompt does not fit the model.
            DeadlineExceeded: The deadline passed first.
        """
        ...

    def decode(
        self, generation: Generation, prepared: P, choice: AdapterChoice[C], allowance: Allowance
    ) -> AsyncGenerator[str | DecodingSummary, None]:
        """Decodes: zero or more pieces of text, none of them empty, then the summary.

        The generator ends, or is closed, only when the adapter is no longer in use.
        """
        ...


async def stream_reply(
    generation: Generation, *, admission: Admission, adapters: StudentAdapters[C], decoder: ReplyDecoder[P, C]
) -> AsyncGenerator[Delta | Reply, None]:
    """Answers one request, as `Engine.stream` does and with its errors.

    Args:
        generation: The request.
        admission: Gives it a place, or refuses it.
        adapters: Hold the adapter that answers.
        decoder: The engine's own part.
    """
    arrived_at = time.monotonic()
    pieces: list[str] = []
    summary: DecodingSummary | None = None
    async with AsyncExitStack() as stack:
        student_id = generation.student_id
        has_model = student_id is not None and adapters.knows_model_of(student_id)
        place = admission.place(generation.deadline, student_id=student_id, has_model=has_model)
        allowance = stack.enter_context(place)
        prepared = await decoder.prepare(generation, allowance)
        prepared_at = time.monotonic()
        choice = await within(stack.enter_async_context(adapters.choose(generation)), allowance)
        if student_id is not None:
            has_model = choice.adapter is not None or adapters.knows_model_of(student_id)
            admission.settle(allowance, has_model=has_model)
        times = _StageTimes(arrived_at=arrived_at, prepared_at=prepared_at, chosen_at=time.monotonic())
        decoding = decoder.decode(generation, prepared, choice, allowance)
        async for event in await stack.enter_async_context(aclosing(decoding)):
            if isinstance(event, DecodingSummary):
                summary = event
            else:
                pieces.append(event)
                yield Delta(event)
    assert summary is not None, "a decoder ends with its summary"
    now = time.monotonic()
    admission.record_duration(now - (summary.started_at or times.chosen_at))
    yield Reply(
        text="".join(pieces),
        model=summary.model,
        main_brain=adapters.main_brain,
        adapter=choice.adapter.identity if choice.adapter else None,
        fallback=choice.fallback,
        finish_reason=summary.finish_reason,
        prompt_tokens=summary.prompt_tokens,
        completion_tokens=summary.completion_tokens,
        timing=_timing_of(times, summary, now=now),
    )


def _timing_of(times: _StageTimes, summary: DecodingSummary, *, now: float) -> Timing:
    if summary.started_at is not None:
        queue_seconds = summary.started_at - times.chosen_at
    else:
        # The engine has a queue of its own, which is part of the wait for the first token. What is known here is the
        # wait for the prompt.
        queue_seconds = times.prepared_at - times.arrived_at
    return Timing(
        queue_ms=queue_seconds * 1e3,
        adapter_load_ms=(times.chosen_at - times.prepared_at) * 1e3,
        first_token_ms=((summary.first_token_at or now) - times.arrived_at) * 1e3,
        total_ms=(now - times.arrived_at) * 1e3,
    )
