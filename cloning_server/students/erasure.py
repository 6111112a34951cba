"""Erasing a student: removes everything that AIVO stores about them. It may be interrupted anywhere and repeated.

The order matters. Clones are cancelled first, so that nothing new is made. Then the versions go, then the clone
records: while any version is left, the records still lead to the student. The memory of the brains comes last, because
a brain could load again what is still stored: one brain is called, and all that listen get a notice. A brain that
neither reaches finds out when it next asks the adapter store.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cloning_server.clone import CloneState
from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.records import ErasedRecords
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.running.brain import Brain
from cloning_server.students.residues import Residue, ResidueTerms
from mesh.adapters.notices import InformedBrains
from mesh.adapters.store import AdapterStore, RemovedAdapters
from mesh.alerts.alert_store import AlertStore
from mesh.errors import AdapterCorrupt, BrainUnavailable, CloneNotFound
from mesh.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What an erasure removed.

    Attributes:
        erased_time: When the erasure ended.
        clones: What it removed from the clone store.
        cancelled_clones: How many of the clones it cancelled.
        models: What it removed from the adapter store.
        alerts: How many safety alerts it removed.
        evicted_adapters: How many adapters the brain that was called dropped from memory; None if it did not answer.
        informed_brains: Which brains a notice reached; None if it could not be sent.
        forgotten_time: When the last brain has forgotten the student at the latest; None if no notice was sent.
        residues: What is left, where and until when.
    """

    student_id: str
    erased_time: datetime
    clones: ErasedRecords
    cancelled_clones: int
    models: RemovedAdapters
    alerts: int
    evicted_adapters: int | None
    informed_brains: InformedBrains | None
    forgotten_time: datetime | None
    residues: tuple[Residue, ...]


@dataclass(slots=True)
class _Removal:
    """What an erasure has removed so far; `clones` is None while clone records are left."""

    clones: ErasedRecords | None = None
    cancelled_clones: int = 0
    models: RemovedAdapters = field(default_factory=lambda: RemovedAdapters(versions=0, objects=0, bytes=0))
    alerts: int = 0


class Erasure:
    """Erases students.

    Args:
        store: Removes the students' clones.
        changes: Cancels those that have not ended.
        adapters: Holds their versions.
        alerts: Holds the safety alerts about them.
        brain: Holds their adapters in memory.
        inform_brains: Tells all brains that a student was deleted, as `mesh.adapters.notices.announce_deletion` does.
        trust_seconds: How long a brain answers from memory that hears from neither the adapter store nor the notices.
        residue_terms: How long what is left stays.
        file_problems: Why Valkey does not rewrite its file; empty if it does.
    """

    def __init__(
        self,
        store: UpkeepStore,
        *,
        changes: CloneChanges,
        adapters: AdapterStore,
        alerts: AlertStore,
        brain: Brain,
        inform_brains: Callable[[str], Awaitable[InformedBrains | None]],
        trust_seconds: float,
        residue_terms: ResidueTerms,
        file_problems: Callable[[], Sequence[str]],
    ) -> None:
        self._store = store
        self._changes = changes
        self._adapters = adapters
        self._alerts = alerts
        self._brain = brain
        self._inform_brains = inform_brains
        self._trust = timedelta(seconds=trust_seconds)
        self._residue_terms = residue_terms
        self._file_problems = file_problems

    async def erase(self, student_id: str) -> Receipt:
        """Removes everything about a student. It succeeds also if there is nothing.

        Raises:
            AdapterStoreUnavailable, AlertStoreUnavailable, CloneStoreUnavailable: Some of it may be left; call again.
        """
        removal = _Removal()
        # Repeats if another clone of the student was accepted meanwhile.
        while removal.clones is None:
            await self._remove(student_id, await self._store.read_lane(student_id), removal)
        return await self._receipt(student_id, removal, removal.clones)

    async def erase_idle(self, student_id: str, *, before: datetime) -> Receipt | None:
        """Removes everything about a student whose latest clone was accepted before this time.

        Returns:
            What was removed. None if the student has a later clone, also one that is accepted meanwhile: that clone
            stays, with the records of the earlier ones. Their versions may be gone by then.

        Raises:
            AdapterStoreUnavailable, AlertStoreUnavailable, CloneStoreUnavailable: Some of it may be left; call again.
        """
        # Read first: if the student is idle after that, no clone in it is a later one.
        lane = await self._store.read_lane(student_id)
        if not await self._store.is_idle(student_id, before=before):
            return None
        removal = _Removal()
        await self._remove(student_id, lane, removal)
        if removal.clones is None:
            await self._evict(student_id)
            await self._inform_brains(student_id)
            return None
        return await self._receipt(student_id, removal, removal.clones)

    async def _remove(self, student_id: str, lane: Sequence[str], removal: "_Removal") -> None:
        """Removes everything but the clone records if there are clones beside those in the lane, which it cancels."""
        # Before the clone records, which lead to the student for as long as anything is left.
        removal.alerts += await self._alerts.erase(student_id)
        removal.cancelled_clones += await self._cancel(lane)
        clone_ids = {*await self._store.list_ids(student_id), *lane}
        models = await self._adapters.delete_student(student_id, clone_ids=clone_ids)
        removal.models = RemovedAdapters(
            versions=removal.models.versions + models.versions,
            objects=removal.models.objects + models.objects,
            bytes=removal.models.bytes + models.bytes,
        )
        removal.clones = await self._store.erase(student_id, ended_ids=lane)

    async def _receipt(self, student_id: str, removal: "_Removal", clones: ErasedRecords) -> Receipt:
        evicted_adapters = await self._evict(student_id)
        informed_brains = await self._inform_brains(student_id)
        _log.info(
            "student_erased",
            clones=clones.clones,
            versions=removal.models.versions,
            brain_reached=evicted_adapters is not None,
            brains_listening=informed_brains and informed_brains.listening,
            brains_confirmed=informed_brains and informed_brains.confirmed,
        )
        # After the notice: a brain that missed it may have heard Valkey until then.
        erased_time = datetime.now(UTC)
        forgotten_time = erased_time + self._trust if informed_brains else None
        return Receipt(
            student_id=student_id,
            erased_time=erased_time,
            clones=clones,
            cancelled_clones=removal.cancelled_clones,
            models=removal.models,
            alerts=removal.alerts,
            evicted_adapters=evicted_adapters,
            informed_brains=informed_brains,
            forgotten_time=forgotten_time,
            residues=self._residue_terms.residues(
                erased_time=erased_time,
                forgotten_time=forgotten_time,
                is_file_rewritten=not self._file_problems(),
            ),
        )

    async def _cancel(self, clone_ids: Sequence[str]) -> int:
        """Cancels clones, also those that have committed a version; returns how many it cancelled."""
        cancelled_clones = 0
        # The second clone first: it would run as soon as the first has ended.
        for clone_id in reversed(clone_ids):
            # A commit that does not parse can't be completed either, and the versions go next.
            with suppress(AdapterCorrupt):
                await self._adapters.void(clone_id)
            try:
                clone = await self._changes.cancel(clone_id)
            except CloneNotFound:
                # Another call erased the same student, or the store has lost the clone.
                continue
            cancelled_clones += clone.state is CloneState.CANCELLED
        return cancelled_clones

    async def _evict(self, student_id: str) -> int | None:
        try:
            return await self._brain.evict(student_id)
        except BrainUnavailable:
            return None
