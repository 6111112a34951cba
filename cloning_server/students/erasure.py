"""Erasing a student: removes everything that AIVO stores about them. It may be interrupted anywhere and repeated.

The order matters. Clones are cancelled first, so that nothing new is made. Then the versions go, then the clone
records: while any version is left, the records still lead to the student. The brain's memory comes last, because the
brain could load again what is still stored.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from cloning_server.clone import CloneState
from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.records import ErasedRecords
from cloning_server.running.brain import Brain
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
        evicted_adapters: How many adapters the brain dropped from memory; None if the brain did not answer.
    """

    student_id: str
    erased_time: datetime
    clones: ErasedRecords
    cancelled_clones: int
    models: RemovedAdapters
    alerts: int
    evicted_adapters: int | None


class Erasure:
    """Erases students.

    Args:
        store: Holds the students' clones.
        adapters: Holds their versions.
        alerts: Holds the safety alerts about them.
        brain: Holds their adapters in memory.
    """

    def __init__(self, store: CloneStore, *, adapters: AdapterStore, alerts: AlertStore, brain: Brain) -> None:
        self._store = store
        self._changes = CloneChanges(store)
        self._adapters = adapters
        self._alerts = alerts
        self._brain = brain

    async def erase(self, student_id: str) -> Receipt:
        """Removes everything about a student. It succeeds also if there is nothing.

        Raises:
            AdapterStoreUnavailable, AlertStoreUnavailable, CloneStoreUnavailable: Some of it may be left; call again.
        """
        # Before the clone records, which lead to the student for as long as anything is left.
        alerts = await self._alerts.erase(student_id)
        cancelled_clones, models = 0, RemovedAdapters(versions=0, objects=0, bytes=0)
        erased: ErasedRecords | None = None
        # Repeats if another clone of the student was accepted meanwhile.
        while erased is None:
            cancelled_clones += await self._cancel_all(student_id)
            removed = await self._adapters.delete_student(student_id)
            models = RemovedAdapters(
                versions=models.versions + removed.versions,
                objects=models.objects + removed.objects,
                bytes=models.bytes + removed.bytes,
            )
            erased = await self._store.erase(student_id)
        evicted_adapters = await self._evict(student_id)
        _log.info(
            "student_erased", clones=erased.clones, versions=models.versions, brain_reached=evicted_adapters is not None
        )
        return Receipt(
            student_id=student_id,
            erased_time=datetime.now(UTC),
            clones=erased,
            cancelled_clones=cancelled_clones,
            models=models,
            alerts=alerts,
            evicted_adapters=evicted_adapters,
        )

    async def _cancel_all(self, student_id: str) -> int:
        """Cancels the student's clones, also those that have committed a version; returns how many it cancelled."""
        cancelled_clones = 0
        # The second clone first: it would run as soon as the first has ended.
        for clone_id in reversed(await self._store.read_lane(student_id)):
            # A commit that does not parse can't be completed either, and the versions go next.
            with suppress(AdapterCorrupt):
                await self._adapters.void(clone_id)
            try:
                clone = await self._changes.cancel(clone_id)
            except CloneNotFound:
                # Another call erased the same student.
                continue
            cancelled_clones += clone.state is CloneState.CANCELLED
        return cancelled_clones

    async def _evict(self, student_id: str) -> int | None:
        try:
            return await self._brain.evict(student_id)
        except BrainUnavailable:
            return None
