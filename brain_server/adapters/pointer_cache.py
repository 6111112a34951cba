"""The students' pointers in memory: which version answers for whom, at most a moment old.

A pointer is believed until it expires or is said to have moved; then the next request reads it anew. While the store
does not answer, the last pointer that was read still stands: a student whose adapter is in memory keeps it, rather than
be answered by the base model. Availability goes before freshness here, as versions are immutable and an earlier one is
still the student's own. Knows nothing of weights.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterStoreUnavailable

# A pointer takes about 1 kB; the least recently read leave first, and cost one read when they come back.
_MAX_POINTERS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    active: ActiveAdapter | None
    asked_at: float
    doubted: bool


class ActivePointers:
    """Reads pointers through, and remembers them for a time to live."""

    def __init__(self, store: AdapterStore, *, ttl_seconds: float) -> None:
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._down_until = 0.0
        # When someone's pointer, and everyone's, was last said to have moved.
        self._doubted_at = 0.0
        self._all_doubted_at = 0.0

    async def resolve(self, student_id: str, *, anew: bool = False) -> ActiveAdapter | None:
        """The student's active version, or None if the student has none.

        Args:
            student_id: The student.
            anew: Ask the store, whatever is remembered.

        Raises:
            AdapterStoreUnavailable: The store does not answer, or did not a moment ago: a store that is down costs one
                caller its timeouts, not every caller.
            AdapterCorrupt: The pointer does not parse.
        """
        now = time.monotonic()
        known = self._known.get(student_id)
        if not anew:
            if known is not None and self._believes(known, now):
                return known.active
            if now < self._down_until:
                raise AdapterStoreUnavailable("the adapter store did not answer a moment ago")
        try:
            active = await self._store.resolve_active(student_id)
        except AdapterStoreUnavailable:
            self._down_until = time.monotonic() + self._ttl_seconds
            raise
        self._down_until = 0.0
        # A read that was under way when some pointer moved may have seen that one as it was: this request began before
        # and may have it, the next may not.
        self._remember(student_id, _Known(active=active, asked_at=now, doubted=now <= self._doubted_at))
        return active

    def last_known(self, student_id: str) -> ActiveAdapter | None:
        """What the store last said, however long ago; None if it said that there is none, or nothing."""
        known = self._known.get(student_id)
        return None if known is None else known.active

    def doubt(self, student_id: str) -> None:
        """Has the student's next request read the pointer anew; what was read stays the last known."""
        self._doubted_at = time.monotonic()
        if (known := self._known.get(student_id)) is not None:
            self._known[student_id] = replace(known, doubted=True)

    def doubt_all(self) -> None:
        """Does so for every student, in constant time."""
        self._all_doubted_at = time.monotonic()

    def forget(self, student_id: str) -> None:
        """Drops what is remembered of a student."""
        self._known.pop(student_id, None)

    def _believes(self, known: _Known, now: float) -> bool:
        fresh = now - known.asked_at < self._ttl_seconds
        return fresh and not known.doubted and known.asked_at > self._all_doubted_at

    def _remember(self, student_id: str, known: _Known) -> None:
        latest = self._known.get(student_id)
        # Of two reads at the same time, the one that began later may not be undone by the one that ended later.
        if latest is None or latest.asked_at <= known.asked_at:
            self._known[student_id] = known
        self._known.move_to_end(student_id)
        while len(self._known) > _MAX_POINTERS:
            self._known.popitem(last=False)
