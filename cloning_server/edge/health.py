"""Health for people: whether clones can be taken and run, and what is missing.

Knows nothing of gRPC.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from cloning_server.clones.listing import CloneCounts
from cloning_server.clones.registry import Registry
from cloning_server.running.brain import Brain
from cloning_server.training import Trainer, TrainerFacts
from mesh.adapters.store import AdapterStore
from mesh.dependencies import Dependency, DependencyCheck

CLONE_STORE, ADAPTER_STORE, TRAINER, BRAIN = "clone_store", "adapter_store", "trainer", "brain"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloningHealthReport:
    """The server's health, in the words of `GetHealthResponse`."""

    status: str
    trainer: TrainerFacts
    counts: CloneCounts
    dependencies: tuple[Dependency, ...]

    @property
    def reason(self) -> str:
        """What is missing; empty if nothing is."""
        fallback = f"{self.trainer.model} trains in place of {self.trainer.fallback_for}"
        parts = [f"{part.name}: {part.reason}" for part in self.dependencies if part.reason]
        return "; ".join([*([fallback] if self.trainer.fallback_for else []), *self.trainer.problems, *parts])


class CloningHealthCheck:
    """Asks every part, all at the same time. Open it with `async with`; it then owns the questions under way.

    Args:
        registry: The clone store's face.
        adapters: The adapter store.
        trainer: Trains.
        brain: Answers.
        is_draining: Whether the server was told to stop.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        adapters: AdapterStore,
        trainer: Trainer,
        brain: Brain,
        is_draining: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._trainer = trainer
        self._is_draining = is_draining
        self._counts = CloneCounts(queued_clones=0, running_clones=0)
        self._clone_store = DependencyCheck(CLONE_STORE, self._count)
        self._adapter_store = DependencyCheck(ADAPTER_STORE, adapters.check)
        self._brain = DependencyCheck(BRAIN, brain.check)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for check in (self._clone_store, self._adapter_store, self._brain):
            await check.aclose()

    async def report(self) -> CloningHealthReport:
        """Never fails, and takes no longer than `mesh.dependencies.CHECK_SECONDS`."""
        clone_store, adapter_store, brain = await asyncio.gather(
            self._clone_store.probe(), self._adapter_store.probe(), self._brain.probe()
        )
        facts = self._trainer.facts
        trainer = Dependency(name=TRAINER, reason="" if facts.ready else facts.reason or "not ready")
        parts = (clone_store, adapter_store, trainer, brain)
        unknown = CloneCounts(queued_clones=0, running_clones=0)
        counts = self._counts if clone_store.available else unknown
        return CloningHealthReport(status=self._status(parts, facts), trainer=facts, counts=counts, dependencies=parts)

    async def _count(self) -> None:
        self._counts = await self._registry.listing.count()

    def _status(self, parts: tuple[Dependency, ...], facts: TrainerFacts) -> str:
        missing = {part.name for part in parts if not part.available}
        if self._is_draining():
            return "draining"
        if CLONE_STORE in missing:
            # Nothing can be accepted; without the other parts, clones are accepted and wait for them.
            return "unhealthy"
        # A trainer knows its device once it has loaded, or tried to.
        if missing == {TRAINER} and not facts.device:
            return "loading"
        return "degraded" if missing or facts.fallback_for or facts.problems else "healthy"
