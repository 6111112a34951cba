"""Runs a clone from its claim to its final state: train, commit, probe, make active.

A temporary error (a store or the brain does not answer, a trainer died) is retried, or the clone runs again later. Any
other error, above all one of the data, ends the clone with its reason. Wherever a run is cut off, the next attempt
makes no second version. The student's pointer moves last, to a version that the brain has decoded with.

Knows nothing of gRPC, Redis or Ray.
"""

import asyncio
import contextlib
import time
import traceback
from dataclasses import dataclass, replace

from cloning_server.clone import AttemptOutcome, Baseline, Clone, CloneState, Failure
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.intake import check_consent
from cloning_server.clones.leases import Leases
from cloning_server.running.brain import Brain
from cloning_server.running.journal import Journal
from cloning_server.running.lineage import Lineage
from cloning_server.running.retry import Retry
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
    KeyServiceUnavailable,
    ModelNotLoaded,
    PublishConflict,
    TrainerUnavailable,
    TrainingTooLong,
    adapter_errors_name,
)
from mesh.log import get_logger

# Temporary errors for which the clone gives up its slot and runs again later. All errors that are neither these nor
# retried within the attempt come from the data or from a bug.
_RUN_AGAIN_AFTER = (TrainerUnavailable, ModelNotLoaded, PublishConflict)

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPolicy:
    """How a clone is trained, and how long the services around it may be down.

    Attributes:
        epochs: Passes over the training examples.
        least_steps: See `TrainingPlan`.
        require_consent: Whether a clone needs a consent.
        train_seconds: How long one training may take.
        save_seconds: How long the adapter store may be down.
        deploy_seconds: How long the brain may be down.
        most_faults: The clone fails at this many attempts that end with a temporary error.
        most_losses: The clone fails after this many attempts whose server was lost: a clone may kill its server.
        pause_seconds: Wait after the first attempt that ends with a temporary error; doubles with each.
        keep_versions: Versions per student that are kept, besides the pinned ones and the active one.
        cohort_prefix: How the ids of cohorts begin, whose adapters new students start from; empty for no cohorts.
    """

    epochs: int = 2
    least_steps: int = 0
    require_consent: bool = False
    train_seconds: float = 14_400.0
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
        leases: Hold the baselines and the pace.
        trainer: Trains the adapters.
        adapters: Publishes them.
        brain: Loads them.
        policy: How to train, and how long to wait for these.
    """

    def __init__(
        self, leases: Leases, *, trainer: Trainer, adapters: AdapterStore, brain: Brain, policy: RunPolicy
    ) -> None:
        self._leases = leases
        self._trainer = trainer
        self._adapters = adapters
        self._brain = brain
        self._policy = policy
        self._retry_saving = Retry(seconds=policy.save_seconds)
        self._lineage = Lineage(adapters, trainer=trainer, cohort_prefix=policy.cohort_prefix)

    async def run(self, journal: Journal) -> None:
        """Returns when the clone is final, is back in the queue, or has another writer. Never fails."""
        try:
            await self._run_to_end(journal)
        except CloneOvertaken:
            _log.warning("clone_overtaken", clone_id=journal.clone.clone_id)
            return
        clone = journal.clone
        _log.info(
            "clone_run_ended",
            clone_id=clone.clone_id,
            state=clone.state,
            attempt=clone.attempt,
            sequence=clone.sequence,
        )

    async def _run_to_end(self, journal: Journal) -> None:
        clone_id = journal.clone.clone_id
        try:
            await self._attempt(journal)
        except CloneOvertaken:
            raise
        except CloneVoided:
            # The server that cancelled it died before it wrote the final state.
            await journal.cancel()
        except _RUN_AGAIN_AFTER as error:
            await self._run_again_later(journal, error)
        except AivoError as error:
            await journal.fail(Failure.of(error))
        except Exception as error:  # noqa: BLE001 - whatever a bug raises, the clone must end and free its student
            # The traceback without the message: the message of an unknown exception may quote the student.
            trace = "".join(traceback.format_tb(error.__traceback__))
            _log.error("clone_crashed", clone_id=clone_id, error=type(error).__name__, trace=trace)
            await journal.fail(
                Failure(reason="INTERNAL", message="Internal error of the server", facts={"call_id": clone_id})
            )

    async def _run_again_later(self, journal: Journal, error: AivoError) -> None:
        """Puts the clone back into the queue, or fails it if too many attempts ended like this."""
        reasons = {kind.reason for kind in _RUN_AGAIN_AFTER}
        faults = sum(attempt.outcome in reasons for attempt in journal.clone.attempts)
        if faults + 1 >= self._policy.most_faults:
            await journal.fail(Failure.of(error))
            return
        seconds = self._policy.pause_seconds * 2**faults
        await journal.put_back("Waiting to try again", outcome=error.reason, seconds=seconds)

    async def _attempt(self, journal: Journal) -> None:
        if journal.clone.state is not CloneState.QUEUED:
            await journal.take_over()
        losses = sum(attempt.outcome == AttemptOutcome.LEASE_EXPIRED for attempt in journal.clone.attempts)
        if losses >= self._policy.most_losses:
            # Most likely the clone itself brings its servers down.
            await journal.fail(Failure.of(TrainerUnavailable("every server that ran the clone was lost")))
            return
        start_seconds = time.monotonic()
        manifest = await self._find_committed(journal.clone)
        responses = 0
        if manifest is None:
            baseline = await self._read_baseline(journal.clone.clone_id)
            responses = len(baseline.responses)
            manifest = await self._save(journal, await self._train(journal, baseline))
        await journal.deploy(manifest)
        await self._deploy(manifest)
        await self._settle(manifest.ref.student_id, seconds=time.monotonic() - start_seconds, responses=responses)
        await journal.complete("The model is ready")

    async def _read_baseline(self, clone_id: str) -> Baseline:
        """Reads what the clone learns from; waits for the clone store, and for a key service as long as for S3."""

        async def read() -> Baseline:
            return await Retry().call(lambda: self._leases.read_baseline(clone_id), on=(CloneStoreUnavailable,))

        return await self._retry_saving.call(read, on=(KeyServiceUnavailable,))

    async def _find_committed(self, clone: Clone) -> Manifest | None:
        """Returns what an earlier attempt committed, even if its server died before it wrote so."""
        if clone.attempt == 1 or clone.manifest is not None:
            return clone.manifest
        versions = await self._retry_saving.call(lambda: self._adapters.list_versions(clone.student_id))
        return next((manifest for manifest in versions if manifest.recipe.clone_id == clone.clone_id), None)

    async def _train(self, journal: Journal, baseline: Baseline) -> TrainedAdapter:
        clone = journal.clone
        check_consent(clone.student_id, clone.terms, required=self._policy.require_consent)
        plan = TrainingPlan(
            clone_id=clone.clone_id,
            baseline=baseline,
            epochs=self._policy.epochs,
            least_steps=self._policy.least_steps,
            previous=await self._retry_saving.call(lambda: self._lineage.find(clone, baseline.profile)),
        )
        try:
            return await self._follow(journal, plan)
        except (AdapterCorrupt, AdapterIncompatible) as error:
            if plan.previous is None or clone.terms.base_version:
                raise
            # The previous version has another base model or shape, so nothing to compare with or to start from.
            _log.warning("previous_version_left_out", clone_id=clone.clone_id, reason=error.reason)
            return await self._follow(journal, replace(plan, previous=None))

    async def _follow(self, journal: Journal, plan: TrainingPlan) -> TrainedAdapter:
        start = None if plan.previous is None else plan.previous.identity
        owner = (journal.clone.student_id, None) if start is None else (start.student_id, start.version)
        try:
            with adapter_errors_name(*owner):
                async with asyncio.timeout(self._policy.train_seconds) as limit:
                    return await self._train_steps(journal, plan)
        except TimeoutError:
            if limit.expired():
                raise TrainingTooLong(seconds=self._policy.train_seconds) from None
            raise

    async def _train_steps(self, journal: Journal, plan: TrainingPlan) -> TrainedAdapter:
        async with contextlib.aclosing(self._trainer.train(plan)) as steps:
            async for step in steps:
                if isinstance(step, TrainedAdapter):
                    return step
                await journal.reach(step.state, step.message, fraction=step.fraction)
        raise TrainerUnavailable("the trainer ended without returning an adapter")

    async def _save(self, journal: Journal, trained: TrainedAdapter) -> Manifest:
        await journal.reach(CloneState.SAVING, "Saving the model")
        student_id = journal.clone.student_id
        return await self._retry_saving.call(
            lambda: self._adapters.stage(student_id, trained.weights, recipe=trained.recipe)
        )

    async def _deploy(self, manifest: Manifest) -> None:
        """Makes a version active after the brain has decoded with it: one that fails this probe never replies."""
        ref = manifest.ref
        retry = Retry(seconds=self._policy.deploy_seconds)
        try:
            sha256 = await retry.call(lambda: self._brain.warm(ref.student_id, ref.version), on=(BrainUnavailable,))
        except BrainUnavailable as error:
            raise BrainUnavailable(str(error), waited_seconds=round(retry.seconds)) from error
        if sha256 != manifest.sha256:
            message = "the brain loaded other weights than those that were committed"
            raise AdapterCorrupt(message, student_id=ref.student_id, version=ref.version)
        await self._retry_saving.call(lambda: self._adapters.activate(ref.student_id, ref.version, only_forward=True))
        # Once more, so that the brain reads the pointer before a watcher learns that the clone completed. This may
        # fail: the version has passed its probe, and a brain that is down now reads the pointer when it starts.
        with contextlib.suppress(AivoError):
            await self._brain.warm(ref.student_id, ref.version)

    async def _settle(self, student_id: str, *, seconds: float, responses: int) -> None:
        """Records the pace and removes old versions. The clone completes even if either fails."""
        with contextlib.suppress(CloneStoreUnavailable):
            if responses:
                await self._leases.record_pace(seconds=seconds, responses=responses)
        try:
            retired = await self._adapters.retire(student_id, keep=self._policy.keep_versions)
            if retired:
                _log.info("versions_retired", student_id=student_id, versions=retired)
        except (AdapterStoreUnavailable, AdapterCorrupt, PublishConflict) as error:
            _log.warning("versions_not_retired", student_id=student_id, reason=error.reason)
