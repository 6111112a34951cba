"""Health for people: whether clones can be taken and run, and what is missing.

Knows nothing of gRPC.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.listing import CloneCounts, CloneListing
from cloning_server.running.brain import Brain
from cloning_server.running.worker import Worker
from cloning_server.training import Trainer, TrainerFacts
from mesh.adapters.store import AdapterStore
from mesh.background import BackgroundTask
from mesh.dependencies import FRESH_SECONDS, Dependency, DependencyCheck
from mesh.valkey.wakeups import Wakeups

CLONE_STORE, ADAPTER_STORE, TRAINER, BRAIN = "clone_store", "adapter_store", "trainer", "brain"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloningHealthReport:
    """The server's health, in the words of `GetHealthResponse`."""

    status: str
    trainer: TrainerFacts
    counts: CloneCounts
    dependencies: tuple[Dependency, ...]
    problems: tuple[str, ...]

    @property
    def reason(self) -> str:
        """What is missing; empty if nothing is."""
        fallback = f"{self.trainer.model} trains in place of {self.trainer.fallback_for}"
        parts = [f"{part.name}: {part.reason}" for part in self.dependencies if part.reason]
        fallbacks = [fallback] if self.trainer.fallback_for else []
        return "; ".join([*fallbacks, *self.trainer.problems, *self.problems, *parts])


class CloningHealthCheck(BackgroundTask):
    """Asks every part, all at the same time. Open it with `async with`; it then owns the questions under way.

    In the background it asks the clone store once a second, so that `accepts_clones` is up to date for `grpc.health`,
    and says the same as a report.

    Args:
        listing: Counts the clones.
        store: The clone store.
        wakeups: Notices of changed clones, from Valkey.
        worker: Takes clones off the queue.
        adapters: The adapter store.
        trainer: Trains.
        brain: Answers.
        is_draining: Whether the server was told to stop.
        problems: Returns why background tasks do not run, or do not do all their work.
    """

    def __init__(
        self,
        listing: CloneListing,
        *,
        store: CloneStore,
        wakeups: Wakeups,
        worker: Worker,
        adapters: AdapterStore,
        trainer: Trainer,
        brain: Brain,
        is_draining: Callable[[], bool],
        problems: Callable[[], tuple[str, ...]],
    ) -> None:
        self._listing = listing
        self._wakeups = wakeups
        self._worker = worker
        self._trainer = trainer
        self._is_draining = is_draining
        self._problems = problems
        self._counts = CloneCounts(queued_clones=0, running_clones=0)
        self._clone_store = DependencyCheck(CLONE_STORE, store.check)
        self._count_check = DependencyCheck(CLONE_STORE, self._count)
        self._adapter_store = DependencyCheck(ADAPTER_STORE, adapters.check)
        self._brain = DependencyCheck(BRAIN, brain.check)

    async def __aexit__(self, *error: object) -> None:
        try:
            await super().__aexit__(*error)
        finally:
            for check in (self._clone_store, self._count_check, self._adapter_store, self._brain):
                await check.aclose()

    @property
    def has_clone_store(self) -> bool:
        """Whether the clone store took the latest test write, and its notices of changes arrive."""
        return self._clone_store.latest.available and self._wakeups.is_connected

    @property
    def accepts_clones(self) -> bool:
        """Whether clones can be accepted, and are taken off the queue."""
        return self.has_clone_store and self._worker.is_running

    async def report(self) -> CloningHealthReport:
        """Never fails, and takes no longer than `mesh.dependencies.CHECK_SECONDS`."""
        _, count_part, adapter_store, brain = await asyncio.gather(
            self._clone_store.probe(), self._count_check.probe(), self._adapter_store.probe(), self._brain.probe()
        )
        # Not the result of this probe: a later check may have ended meanwhile, and `accepts_clones` goes by the latest.
        clone_store = self._clone_store.latest
        if clone_store.available and not self._wakeups.is_connected:
            clone_store = replace(clone_store, reason="it does not tell of changes")
        facts, problems = self._trainer.facts, self._problems()
        trainer = Dependency(name=TRAINER, reason="" if facts.ready else facts.reason or "not ready")
        parts = (clone_store, adapter_store, trainer, brain)
        return CloningHealthReport(
            status=self._status(parts, facts, problems),
            trainer=facts,
            counts=self._counts if count_part.available else CloneCounts(queued_clones=0, running_clones=0),
            dependencies=parts,
            problems=problems,
        )

    async def _run(self) -> None:
        while True:
            await self._clone_store.probe()
            await asyncio.sleep(FRESH_SECONDS)

    async def _count(self) -> None:
        self._counts = await self._listing.count()

    def _status(self, parts: Sequence[Dependency], facts: TrainerFacts, problems: Sequence[str]) -> str:
        missing = {part.name for part in parts if not part.available}
        if self._is_draining():
            return "draining"
        if not self.accepts_clones:
            # Without the other parts, clones are accepted and wait for them.
            return "unhealthy"
        # A trainer knows its device once it has loaded, or tried to.
        if missing == {TRAINER} and not facts.device:
            return "loading"
        return "degraded" if missing or facts.fallback_for or facts.problems or problems else "healthy"
