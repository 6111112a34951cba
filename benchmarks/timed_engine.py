"""An engine that notes when the real one decodes, and may put other words into its mouth."""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

from brain_server.engine.contract import (
    Delta,
    Engine,
    EngineFacts,
    Generation,
    LoadedAdapter,
    Reply,
    Residency,
    WarmedAdapter,
)
from mesh.lm.chat import Prompt
from mesh.main_brain.roles import RoleName


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
