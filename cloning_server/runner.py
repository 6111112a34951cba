"""Runs a clone from its claim to its final state: train, save, deploy.

What passes by itself (a store or the brain that does not answer, a trainer that died) is waited for or tried again;
what does not ends the clone with its reason. Wherever a run is cut off, the next attempt makes no second version.

Knows nothing of gRPC, Redis or Ray.
"""

import asyncio
import contextlib
import time
import traceback
from dataclasses import dataclass
from typing import Protocol

from cloning_server.clone import Baseline, Clone, CloneState, Failure
from cloning_server.journal import Journal
from cloning_server.patience import Patience
from cloning_server.registry import CloneOvertaken, Registry
from cloning_server.training import Trained, Trainer, TrainingPlan
from mesh.adapters.manifest import Manifest
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    AdapterCorrupt,
    AivoError,
    BrainUnavailable,
    CloneStoreUnavailable,
    ModelNotLoaded,
    TrainerUnavailable,
)
from mesh.log import get_logger

_log = get_logger(__name__)


class Brain(Protocol):
    """The server that answers with the adapters."""

    async def warm(self, student_id: str, version: int) -> str:
        """Has an adapter loaded and probed; returns the sha256 of its weights.

        Raises:
            BrainUnavailable: The brain, or a part that it leans on, does not answer for now.
        """
        ...

    async def check(self) -> None:
        """Returns if the brain can warm adapters.

        Raises:
            BrainUnavailable: It can't.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPolicy:
    """How a clone is trained, and how long its surroundings may be down.

    Attributes:
        epochs: Passes over the training examples.
        save_seconds: How long the adapter store may be down.
        deploy_seconds: How long the brain may be down.
        most_attempts: The attempt that is the last if its trainer dies; attempts that a restart cut off count too.
        pause_seconds: Before a clone is tried again whose trainer died; grows with the attempts.
    """

    epochs: int = 3
    save_seconds: float = 600.0
    deploy_seconds: float = 600.0
    most_attempts: int = 3
    pause_seconds: float = 5.0


class CloneRunner:
    """Runs clones, any number at once.

    Args:
        registry: Where the clones are.
        trainer: Trains their adapters.
        adapters: Where they are published.
        brain: Where they are deployed.
        policy: How long to wait for these.
    """

    def __init__(
        self, registry: Registry, *, trainer: Trainer, adapters: AdapterStore, brain: Brain, policy: RunPolicy
    ) -> None:
        self._registry = registry
        self._trainer = trainer
        self._adapters = adapters
        self._brain = brain
        self._policy = policy

    async def run(self, clone: Clone) -> None:
        """Returns when the clone is final, waits in the queue again, or is somebody else's. Never fails."""
        journal = Journal(self._registry, clone)
        try:
            await self._end_well_or_not(journal)
        except CloneOvertaken:
            _log.warning("clone_overtaken", clone_id=clone.clone_id)
            return
        told = journal.clone
        _log.info("clone_left", clone_id=told.clone_id, state=told.state, attempt=told.attempt, sequence=told.sequence)

    async def _end_well_or_not(self, journal: Journal) -> None:
        clone_id = journal.clone.clone_id
        try:
            await self._attempt(journal)
        except CloneOvertaken:
            raise
        except (TrainerUnavailable, ModelNotLoaded) as error:
            if journal.clone.attempt >= self._policy.most_attempts:
                await journal.fail(_failure(error))
                return
            await asyncio.sleep(self._policy.pause_seconds * journal.clone.attempt)
            await journal.start_over("Waiting for another trainer")
        except AivoError as error:
            await journal.fail(_failure(error))
        except Exception as error:  # noqa: BLE001 - whatever a bug raises, the clone must end and its student be free
            # Where, not what: an unknown exception's message may hold a student's words.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("clone_broke", clone_id=clone_id, error=type(error).__name__, trace=trace)
            await journal.fail(Failure(reason="INTERNAL", message="A fault of the server", facts={"call_id": clone_id}))

    async def _attempt(self, journal: Journal) -> None:
        if (manifest := await self._find_published(journal.clone)) is not None:
            await journal.keep(manifest)
            await self._deploy(journal, manifest)
            return
        started = time.monotonic()
        baseline = await Patience().insist(lambda: self._registry.read_baseline(journal.clone.clone_id))
        trained = await self._train(journal, baseline)
        manifest = await self._save(journal, trained)
        await self._deploy(journal, manifest)
        with contextlib.suppress(CloneStoreUnavailable):
            seconds = time.monotonic() - started
            await self._registry.record_pace(seconds=seconds, responses=len(baseline.responses))

    async def _find_published(self, clone: Clone) -> Manifest | None:
        """What an earlier attempt published, even if it ended before it could tell; it is the active version then."""
        if clone.attempt == 1:
            return None
        manifest = clone.manifest
        if manifest is None:
            versions = await self._saving.insist(lambda: self._adapters.list_versions(clone.student_id))
            manifest = next((one for one in versions if one.recipe.clone_id == clone.clone_id), None)
        if manifest is not None:
            version = manifest.ref.version
            await self._saving.insist(lambda: self._adapters.activate(clone.student_id, version, only_forward=True))
        return manifest

    async def _train(self, journal: Journal, baseline: Baseline) -> Trained:
        plan = TrainingPlan(clone_id=journal.clone.clone_id, baseline=baseline, epochs=self._policy.epochs)
        async with contextlib.aclosing(self._trainer.train(plan)) as steps:
            async for step in steps:
                if isinstance(step, Trained):
                    return step
                await journal.reach(step.state, step.message, fraction=step.fraction)
        raise TrainerUnavailable("the trainer ended without an adapter")

    async def _save(self, journal: Journal, trained: Trained) -> Manifest:
        await journal.reach(CloneState.SAVING, "Saving the model")
        student_id = journal.clone.student_id
        manifest = await self._saving.insist(
            lambda: self._adapters.publish(student_id, trained.weights, recipe=trained.recipe)
        )
        await journal.keep(manifest)
        return manifest

    async def _deploy(self, journal: Journal, manifest: Manifest) -> None:
        ref = manifest.ref
        patience = Patience(seconds=self._policy.deploy_seconds)
        try:
            sha256 = await patience.insist(
                lambda: self._brain.warm(ref.student_id, ref.version), on=(BrainUnavailable,)
            )
        except BrainUnavailable as error:
            raise BrainUnavailable(str(error), waited_seconds=round(patience.seconds)) from error
        if sha256 != manifest.sha256:
            raise AdapterCorrupt("the brain loaded other weights than were published", version=ref.version)
        await journal.reach(CloneState.COMPLETED, "The model is ready")

    @property
    def _saving(self) -> Patience:
        return Patience(seconds=self._policy.save_seconds)


def _failure(error: AivoError) -> Failure:
    facts = {name: str(fact) for name, fact in error.facts.items()}
    return Failure(reason=error.reason, message=str(error), facts=facts)
