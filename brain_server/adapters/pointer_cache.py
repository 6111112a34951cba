"""A cache of the students' pointers: which version is each student's active one.

A cached pointer is valid until it expires or is reported to have moved; then the next request reads it again. While the
store does not answer, the last known pointer still counts: a student whose adapter is in memory keeps it, rather than
being answered by the base model. Availability goes before freshness here, as versions are immutable and an earlier one
is still the student's own. Knows nothing of weights.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterStoreUnavailable

# A pointer takes about 1 kB. The least recently used are dropped first; each costs one read when it is needed again.
_MAX_POINTERS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class _CachedPointer:
    active: ActiveAdapter | None
    read_at: float
    stale: bool


class ActivePointers:
    """Reads pointers from the store, and caches them for a time to live."""

    def __init__(self, store: AdapterStore, *, ttl_seconds: float) -> None:
        self._store = store
        self._ttl_seconds = ttl_seconds
        self._cached_pointers: OrderedDict[str, _CachedPointer] = OrderedDict()
        self._down_until = 0.0
        # When any pointer, and when all of them, were last reported to have moved.
        self._stale_at = 0.0
        self._all_stale_at = 0.0

    async def resolve(self, student_id: str, *, refresh: bool = False) -> ActiveAdapter | None:
        """Returns the student's active version, or None if the student has none.

        Args:
            student_id: The student.
            refresh: Whether to read the store even if the pointer is cached.

        Raises:
            AdapterStoreUnavailable: The store does not answer, or did not within the last time to live: while it is
                down, not every caller waits for its timeouts.
            AdapterCorrupt: The pointer does not parse.
        """
        now = time.monotonic()
        pointer = self._cached_pointers.get(student_id)
        if not refresh:
            if pointer is not None and self._is_valid(pointer, now):
                return pointer.active
            if now < self._down_until:
                raise AdapterStoreUnavailable(
                    "the adapter store did not answer a moment ago; try again in a few seconds"
                )
        try:
            active = await self._store.resolve_active(student_id)
        except AdapterStoreUnavailable:
            self._down_until = time.monotonic() + self._ttl_seconds
            raise
        self._down_until = 0.0
        # A read during which some pointer moved may have returned the old one. That is right for this request, which
        # began before, but not for the next.
        self._put(student_id, _CachedPointer(active=active, read_at=now, stale=now <= self._stale_at))
        return active

    def last_known(self, student_id: str) -> ActiveAdapter | None:
        """Returns the active version by the last read, however old; None without one, or if the student had none."""
        pointer = self._cached_pointers.get(student_id)
        return None if pointer is None else pointer.active

    def mark_stale(self, student_id: str) -> None:
        """Makes the student's next request read the pointer again; the cached one stays the last known."""
        self._stale_at = time.monotonic()
        if (pointer := self._cached_pointers.get(student_id)) is not None:
            self._cached_pointers[student_id] = replace(pointer, stale=True)

    def mark_all_stale(self) -> None:
        """Does the same for every student, in constant time."""
        self._all_stale_at = time.monotonic()

    def forget(self, student_id: str) -> None:
        """Removes a student's pointer from the cache."""
        self._cached_pointers.pop(student_id, None)

    def _is_valid(self, pointer: _CachedPointer, now: float) -> bool:
        fresh = now - pointer.read_at < self._ttl_seconds
        return fresh and not pointer.stale and pointer.read_at > self._all_stale_at

    def _put(self, student_id: str, pointer: _CachedPointer) -> None:
        latest = self._cached_pointers.get(student_id)
        # Of two concurrent reads, the one that began later counts, whichever ends later.
        if latest is None or latest.read_at <= pointer.read_at:
            self._cached_pointers[student_id] = pointer
        self._cached_pointers.move_to_end(student_id)
        while len(self._cached_pointers) > _MAX_POINTERS:
            self._cached_pointers.popitem(last=False)
