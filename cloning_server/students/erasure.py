"""Erasing a student: everything that is held of them, in an order that can be broken off anywhere and begun again.

Clones are cancelled first, so that nothing new is made; then goes what was made, then what is known of it, so that a
student of whom anything is left is found again; last the brain's memory, as it could load again what is still stored.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.records import Erased
from cloning_server.clones.registry import Registry
from cloning_server.running.runner import Brain
from mesh.adapters.store import AdapterStore, Removed
from mesh.errors import BrainUnavailable, CloneNotFound
from mesh.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What was removed where.

    Attributes:
        erased_time: When the last of it was.
        clones: From the clone store.
        cancelled: Of these, the clones that had not ended.
        models: From the adapter store.
        evicted: Adapters that left the brain's memory; None if the brain was not reached.
    """

    student_id: str
    erased_time: datetime
    clones: Erased
    cancelled: int
    models: Removed
    evicted: int | None


class Erasure:
    """Erases students.

    Args:
        registry: Cancels their clones.
        clones: Holds them.
        adapters: Holds their versions.
        brain: Has them in memory.
    """

    def __init__(self, registry: Registry, clones: CloneStore, *, adapters: AdapterStore, brain: Brain) -> None:
        self._registry = registry
        self._clones = clones
        self._adapters = adapters
        self._brain = brain

    async def erase(self, student_id: str) -> Receipt:
        """Removes all that is held of a student; of one of whom nothing is held, nothing.

        Raises:
            AdapterStoreUnavailable, CloneStoreUnavailable: Some of it may be left; call again.
        """
        cancelled, models = 0, Removed(versions=0, objects=0, bytes=0)
        erased: Erased | None = None
        # Again if the student was given another clone meanwhile.
        while erased is None:
            cancelled += await self._cancel_all(student_id)
            removed = await self._adapters.delete_student(student_id)
            models = Removed(
                versions=models.versions + removed.versions,
                objects=models.objects + removed.objects,
                bytes=models.bytes + removed.bytes,
            )
            erased = await self._clones.erase(student_id)
        evicted = await self._evict(student_id)
        _log.info("student_erased", clones=erased.clones, versions=models.versions, brain_reached=evicted is not None)
        return Receipt(
            student_id=student_id,
            erased_time=datetime.now(UTC),
            clones=erased,
            cancelled=cancelled,
            models=models,
            evicted=evicted,
        )

    async def _cancel_all(self, student_id: str) -> int:
        """Cancels the student's clones, committed or not; returns how many had not ended."""
        cancelled = 0
        # The one that waits behind first, else its turn would come.
        for clone_id in reversed(await self._clones.read_lane(student_id)):
            await self._adapters.void(clone_id)
            try:
                clone = await self._registry.cancel(clone_id)
            except CloneNotFound:
                # Another call for the same student was faster.
                continue
            cancelled += clone.state is CloneState.CANCELLED
        return cancelled

    async def _evict(self, student_id: str) -> int | None:
        try:
            return await self._brain.evict(student_id)
        except BrainUnavailable:
            return None
