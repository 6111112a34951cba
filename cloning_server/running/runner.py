"""Runs a clone from its claim to its final state: train, commit, probe, make active.

What passes by itself (a store or the brain that does not answer, a trainer that died) is waited for or tried again;
what does not, a fault of the data above all, ends the clone with its reason. Wherever a run is cut off, the next
attempt makes no second version. The student's pointer moves last, to a version that the brain has decoded with.

Knows nothing of gRPC, Redis or Ray.
"""

import contextlib
import time
import traceback
from dataclasses import dataclass, replace
from typing import Protocol

from cloning_server.clone import Baseline, Clone, CloneState, Failure, Outcome
from cloning_server.clones.registry import CloneOvertaken, Registry
from cloning_server.running.journal import Journal
from cloning_server.running.lineage import Ancestry
from cloning_server.running.retry import Patience
from cloning_server.training import TrainedAdapter, Trainer, TrainingPlan
from mesh.adapters.manifest import Manifest
from mesh.adapters.store import AdapterStore, CloneVoided
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterStoreUnavailable,
    AivoError,
    BrainUnavailable,
    CloneStoreUnavailable,
    ModelNotLoaded,
    PublishConflict,
    TrainerUnavailable,
    adapter_errors_name,
)
from mesh.log import get_logger

# Faults of the surroundings that no wait within the attempt heals. All other faults are the data's, or a bug's.
_TRIED_AGAIN = (TrainerUnavailable, ModelNotLoaded, PublishConflict)

_log = get_logger(__name__)


class Brain(Protocol):
    """The server that answers with the adapters."""

    async def warm(self, student_id: str, version: int) -> str:
        """Has an adapter loaded and probed; returns the sha256 of its weights. New requests see the pointer as it is.

        Raises:
            BrainUnavailable: The brain, or a part that it leans on, does not answer for now.
        """
        ...

    async def evict(self, student_id: str) -> int:
        """Has a student's adapters dropped from memory; returns how many there were.

        Raises:
            BrainUnavailable: The brain does not answer for now.
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
        most_faults: Attempts that may end by faults of the surroundings; the last of them ends the clone.
        most_losses: Attempts whose server may be lost, likewise: whatever kills its server every time must end too.
        pause_seconds: Before a clone is tried again after the first such fault; doubles with each.
        keep_versions: Versions of a student that stay, besides the pinned ones and the active one.
        cohort_prefix: How the ids of cohorts begin, whose adapters new students start from; empty if there are none.
    """

    epochs: int = 3
    save_seconds: float = 600.0
    deploy_seconds: float = 600.0
    most_faults: int = 3
    most_losses: int = 10
    pause_seconds: float = 5.0
    keep_versions: int = 5
    cohort_prefix: str = ""


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
        self._saving = Patience(seconds=policy.save_seconds)
        self._ancestry = Ancestry(adapters, trainer=trainer, cohort_prefix=policy.cohort_prefix)

    async def run(self, journal: Journal) -> None:
        """Returns when the clone is final, waits in the queue again, or is somebody else's. Never fails."""
        try:
            await self._end_well_or_not(journal)
        except CloneOvertaken:
            _log.warning("clone_overtaken", clone_id=journal.clone.clone_id)
            return
        told = journal.clone
        _log.info("clone_left", clone_id=told.clone_id, state=told.state, attempt=told.attempt, sequence=told.sequence)

    async def _end_well_or_not(self, journal: Journal) -> None:
        clone_id = journal.clone.clone_id
        try:
            await self._attempt(journal)
        except CloneOvertaken:
            raise
        except CloneVoided:
            # Somebody cancelled it and did not come to say so.
            await journal.cancel()
        except _TRIED_AGAIN as error:
            await self._try_again(journal, error)
        except AivoError as error:
            await journal.fail(_failure(error))
        except Exception as error:  # noqa: BLE001 - whatever a bug raises, the clone must end and its student be free
            # Where, not what: an unknown exception's message may hold a student's words.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("clone_broke", clone_id=clone_id, error=type(error).__name__, trace=trace)
            await journal.fail(Failure(reason="INTERNAL", message="A fault of the server", facts={"call_id": clone_id}))

    async def _try_again(self, journal: Journal, error: AivoError) -> None:
        """Puts the clone back, off its slot, or ends it if that was done too often."""
        ended_by_faults = {kind.reason for kind in _TRIED_AGAIN}
        faults = sum(attempt.outcome in ended_by_faults for attempt in journal.clone.attempts)
        if faults + 1 >= self._policy.most_faults:
            await journal.fail(_failure(error))
            return
        seconds = self._policy.pause_seconds * 2**faults
        await journal.put_back("Waiting to be tried again", outcome=error.reason, seconds=seconds)

    async def _attempt(self, journal: Journal) -> None:
        if journal.clone.state is not CloneState.QUEUED:
            await journal.take_over()
        losses = sum(attempt.outcome == Outcome.LEASE_EXPIRED for attempt in journal.clone.attempts)
        if losses >= self._policy.most_losses:
            # Most likely it is the clone that brings them down.
            await journal.fail(_failure(TrainerUnavailable("every server that ran the clone was lost")))
            return
        started = time.monotonic()
        manifest = await self._find_committed(journal.clone)
        responses = 0
        if manifest is None:
            baseline = await Patience().insist(lambda: self._registry.read_baseline(journal.clone.clone_id))
            responses = len(baseline.responses)
            manifest = await self._save(journal, await self._train(journal, baseline))
        await journal.keep(manifest)
        await self._deploy(manifest)
        await self._settle(manifest.ref.student_id, seconds=time.monotonic() - started, responses=responses)
        await journal.complete("The model is ready")

    async def _find_committed(self, clone: Clone) -> Manifest | None:
        """What an earlier attempt committed, even if it ended before it could tell."""
        if clone.attempt == 1 or clone.manifest is not None:
            return clone.manifest
        versions = await self._saving.insist(lambda: self._adapters.list_versions(clone.student_id))
        return next((one for one in versions if one.recipe.clone_id == clone.clone_id), None)

    async def _train(self, journal: Journal, baseline: Baseline) -> TrainedAdapter:
        clone = journal.clone
        self._registry.require_consent(clone.student_id, clone.terms)
        plan = TrainingPlan(
            clone_id=clone.clone_id,
            baseline=baseline,
            epochs=self._policy.epochs,
            previous=await self._saving.insist(lambda: self._ancestry.find(clone, baseline.profile)),
        )
        try:
            return await self._follow(journal, plan)
        except (AdapterCorrupt, AdapterIncompatible) as error:
            if plan.previous is None or clone.terms.base_version:
                raise
            # Of another base model or shape: there is nothing to compare with or to start from.
            _log.warning("no_previous_version", clone_id=clone.clone_id, reason=error.reason)
            return await self._follow(journal, replace(plan, previous=None))

    async def _follow(self, journal: Journal, plan: TrainingPlan) -> TrainedAdapter:
        start = None if plan.previous is None else plan.previous.identity
        whose = (journal.clone.student_id, None) if start is None else (start.student_id, start.version)
        with adapter_errors_name(*whose):
            async with contextlib.aclosing(self._trainer.train(plan)) as steps:
                async for step in steps:
                    if isinstance(step, TrainedAdapter):
                        return step
                    await journal.reach(step.state, step.message, fraction=step.fraction)
        raise TrainerUnavailable("the trainer ended without an adapter")

    async def _save(self, journal: Journal, trained: TrainedAdapter) -> Manifest:
        await journal.reach(CloneState.SAVING, "Saving the model")
        student_id = journal.clone.student_id
        return await self._saving.insist(
            lambda: self._adapters.stage(student_id, trained.weights, recipe=trained.recipe)
        )

    async def _deploy(self, manifest: Manifest) -> None:
        """Makes a version active once the brain has decoded with it: one that fails its probe never answers anybody."""
        ref = manifest.ref
        patience = Patience(seconds=self._policy.deploy_seconds)
        try:
            sha256 = await patience.insist(
                lambda: self._brain.warm(ref.student_id, ref.version), on=(BrainUnavailable,)
            )
        except BrainUnavailable as error:
            raise BrainUnavailable(str(error), waited_seconds=round(patience.seconds)) from error
        if sha256 != manifest.sha256:
            message = "the brain loaded other weights than were committed"
            raise AdapterCorrupt(message, student_id=ref.student_id, version=ref.version)
        await self._saving.insist(lambda: self._adapters.activate(ref.student_id, ref.version, only_forward=True))
        # Once more, for the pointer: whoever is told that the clone completed may ask the next moment. The probe was
        # passed, and a brain that is away just now reads the pointer when it comes back.
        with contextlib.suppress(AivoError):
            await self._brain.warm(ref.student_id, ref.version)

    async def _settle(self, student_id: str, *, seconds: float, responses: int) -> None:
        """What a clone that went well leaves for others; nothing of it is worth failing for."""
        with contextlib.suppress(CloneStoreUnavailable):
            if responses:
                await self._registry.record_pace(seconds=seconds, responses=responses)
        try:
            retired = await self._adapters.retire(student_id, keep=self._policy.keep_versions)
            if retired:
                _log.info("versions_retired", student_id=student_id, versions=retired)
        except (AdapterStoreUnavailable, AdapterCorrupt, PublishConflict) as error:
            _log.warning("versions_not_retired", student_id=student_id, reason=error.reason)


def _failure(error: AivoError) -> Failure:
    facts = {name: str(fact) for name, fact in error.facts.items()}
    return Failure(reason=error.reason, message=str(error), facts=facts)
