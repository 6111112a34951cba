"""Calls that are timed from the engine to the end of their stream, with the product's agent and without one."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

from brain_server.engine.contract import (
    Delta,
    Engine,
    EngineFacts,
    FinishReason,
    Generation,
    LoadedAdapter,
    Reply,
    Residency,
    WarmedAdapter,
)
from brain_server.safety.agent import SafetyAgent, ScreenedReply
from brain_server.safety.settings import SafetySettings
from brain_server.safety.verdict import TextKind
from mesh.lm.chat import Prompt
from mesh.main_brain.roles import RoleName

# What answers a call: the engine itself, or an agent with that `SAFETY`.
Arm = Literal["without", "off", "monitor", "enforce"]


class TimedEngine:
    """Decodes with a real engine, for one call.

    Attributes:
        decoded_at: When each piece of the reply was decoded, in `time.perf_counter()` seconds.
        readings: Prompts that were weighed: what the guard read.

    Args:
        engine: The real engine. Its steps set the pace, whatever is said.
        words: Pieces that replace the first ones that it decodes, one for one.
    """

    def __init__(self, engine: Engine, *, words: Sequence[str] = ()) -> None:
        self.decoded_at: list[float] = []
        self.readings = 0
        self._engine = engine
        self._words = words

    @property
    def facts(self) -> EngineFacts:
        """See `Engine.facts`."""
        return self._engine.facts

    async def stream(self, generation: Generation) -> AsyncGenerator[Delta | Reply, None]:
        """See `Engine.stream`. The reply at the end is the real one."""
        async with aclosing(self._engine.stream(generation)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    place = len(self.decoded_at)
                    self.decoded_at.append(time.perf_counter())
                    yield Delta(self._words[place]) if place < len(self._words) else event
                else:
                    yield event

    async def weigh(
        self, prompt: Prompt, labels: Sequence[str], *, role: RoleName | None = None, deadline: float | None = None
    ) -> Mapping[str, float]:
        """See `Engine.weigh`."""
        self.readings += 1
        return await self._engine.weigh(prompt, labels, role=role, deadline=deadline)

    async def warm(self, student_id: str, version: int | None = None) -> WarmedAdapter:
        """See `Engine.warm`."""
        return await self._engine.warm(student_id, version)

    def residencies(self) -> Sequence[Residency]:
        """See `Engine.residencies`."""
        return self._engine.residencies()

    async def evict(self, student_id: str) -> Sequence[LoadedAdapter]:
        """See `Engine.evict`."""
        return await self._engine.evict(student_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCall:
    """One call; moments are in seconds of `time.perf_counter()`.

    Attributes:
        started_at: When the call began.
        decoded_at: When the engine decoded each piece of the reply.
        delivered_at: When each piece reached the caller.
        ended_at: When the stream was closed.
        pieces: What reached the caller.
        blocked_text: The text that was harmful, if screening ended the reply; else None.
        readings: Prompts that the guard read.
    """

    started_at: float
    decoded_at: Sequence[float]
    delivered_at: Sequence[float]
    ended_at: float
    pieces: Sequence[str]
    blocked_text: TextKind | None
    readings: int

    @property
    def first_decoded_ms(self) -> float:
        """Milliseconds to the first decoded piece, which is one token or the few that make a whole character."""
        return (self.decoded_at[0] - self.started_at) * 1e3

    @property
    def first_delivered_ms(self) -> float:
        """Milliseconds to the first piece that reached the caller."""
        return (self.delivered_at[0] - self.started_at) * 1e3


async def time_call(
    engine: Engine, settings: SafetySettings, arm: Arm, generation: Generation, *, words: Sequence[str] = ()
) -> TimedCall:
    """Makes a call and reads it to its end. The agent is new, so that no reading of the guard is cached.

    Args:
        engine: Decodes.
        settings: Those of the agent; the arm decides on `safety`.
        arm: What answers.
        generation: The call.
        words: See `TimedEngine`.
    """
    timed = TimedEngine(engine, words=words)
    if arm == "without":
        stream: AsyncGenerator[Delta | Reply | ScreenedReply, None] = timed.stream(generation)
    else:
        mode = settings.model_copy(update={"safety": arm})
        agent = SafetyAgent.of(timed, mode, on_flag=_ignore, observe=_ignore)
        stream = agent.stream(generation, request_id="")
    delivered_at: list[float] = []
    pieces: list[str] = []
    started_at = time.perf_counter()
    blocked_text: TextKind | None = None
    async with aclosing(stream) as events:
        async for event in events:
            if isinstance(event, Delta):
                delivered_at.append(time.perf_counter())
                pieces.append(event.text)
            elif isinstance(event, ScreenedReply) and event.reply.finish_reason is FinishReason.SAFETY:
                blocked_text = event.verdict.text if event.verdict else None
    return TimedCall(
        started_at=started_at,
        decoded_at=timed.decoded_at,
        delivered_at=delivered_at,
        ended_at=time.perf_counter(),
        pieces=pieces,
        blocked_text=blocked_text,
        readings=timed.readings,
    )


def _ignore(_: object) -> None:
    """Alerts and metrics are not measured."""
