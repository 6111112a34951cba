"""Lists of clones, how many there are, and where they stand in the queue."""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cloning_server.clone import Clone, CloneState
from cloning_server.clones import estimates
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import decode_clone
from cloning_server.clones.records import Backlog
from mesh.errors import CloneCorrupt, CloneStoreUnavailable
from mesh.log import get_logger
from mesh.paging import number_in, token_after

_log = get_logger(__name__)

# A queue moves in seconds. Without this, each of thousands of watchers would read the whole queue.
BACKLOG_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClonePage:
    """Clones, newest first, and the token of the next page; empty on the last page."""

    clones: tuple[Clone, ...]
    next_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneCounts:
    """How many clones wait, and how many run."""

    queued_clones: int
    running_clones: int


class CloneListing:
    """Lists clones. Every method raises `CloneStoreUnavailable` while the store does not answer.

    Args:
        store: Holds the clones.
        parallel: How many clones this server runs at once, for estimates.
    """

    def __init__(self, store: CloneStore, *, parallel: int = 1) -> None:
        self._store = store
        self._parallel = parallel
        self._recent_backlog = _RecentBacklog(store)

    async def list_clones(self, *, student_id: str = "", size: int = 20, token: str = "") -> ClonePage:
        """Returns a page of a student's clones, newest first; an empty id stands for all students.

        Clones that can't be read are left out, and logged.

        Raises:
            InvalidField: The token does not belong to this list.
        """
        below = number_in(token, _list_name(student_id)) if token else None
        # One more than the page holds, to know whether another page follows.
        numbers = await self._store.list_numbers(student_id, below=below, limit=size + 1)
        latest = await self._store.read_latest([clone_id for clone_id, _ in numbers[:size]])
        return ClonePage(
            clones=tuple(_readable(latest)),
            next_token=token_after(numbers[size - 1][1], _list_name(student_id)) if len(numbers) > size else "",
        )

    async def has_clones(self, student_id: str) -> bool:
        """Returns whether there are clones of a student, also such as can't be read."""
        return bool(await self._store.list_numbers(student_id, below=None, limit=1))

    async def with_estimates(self, clones: Sequence[Clone]) -> list[Clone]:
        """Returns the clones with their current queue positions and the times that they are likely to take from now."""
        if all(clone.state.is_final for clone in clones):
            return list(clones)
        backlog, now = await self._store.read_backlog(), datetime.now(UTC)
        return [estimates.with_estimate(clone, backlog, parallel=self._parallel, now=now) for clone in clones]

    async def with_recent_estimates(self, clones: Sequence[Clone]) -> list[Clone]:
        """As `with_estimates`, as of at most `BACKLOG_SECONDS` ago; as they are while the store does not answer.

        For watchers: however many there are, they read the store once in that time.
        """
        if all(clone.state.is_final for clone in clones):
            return list(clones)
        # An old estimate is better than none.
        with contextlib.suppress(CloneStoreUnavailable):
            backlog, now = await self._recent_backlog.read(clones), datetime.now(UTC)
            return [estimates.with_estimate(clone, backlog, parallel=self._parallel, now=now) for clone in clones]
        return list(clones)

    async def list_latest_ids(self, student_ids: Sequence[str], *, limit: int) -> list[list[str]]:
        """Returns for each student the ids of so many of their latest clones, newest first."""
        return await self._store.list_latest_ids(student_ids, limit=limit)

    async def count(self) -> CloneCounts:
        """Counts the clones; cheap enough for a health check."""
        queued_clones, running_clones = await self._store.count()
        return CloneCounts(queued_clones=queued_clones, running_clones=running_clones)


class _RecentBacklog:
    """The backlog as it was a moment ago, shared by all who read it."""

    def __init__(self, store: CloneStore) -> None:
        self._store = store
        self._backlog: Backlog | None = None
        self._read_at = -math.inf
        self._reading = asyncio.Lock()

    async def read(self, clones: Sequence[Clone]) -> Backlog:
        """Returns the backlog; read anew if it is too old, or older than one of these clones.

        Raises:
            CloneStoreUnavailable: The store does not answer, or did not a moment ago.
        """
        async with self._reading:
            is_old = time.monotonic() - self._read_at > BACKLOG_SECONDS
            if is_old or (self._backlog is not None and _lacks_any(self._backlog, clones)):
                self._backlog = None
                try:
                    self._backlog = await self._store.read_backlog()
                finally:
                    # Those who waited for a reading that failed share its failure.
                    self._read_at = time.monotonic()
            if self._backlog is None:
                raise CloneStoreUnavailable("the clone store did not answer a moment ago; try again in a few seconds")
            return self._backlog


def _lacks_any(backlog: Backlog, clones: Sequence[Clone]) -> bool:
    return any(clone.state is CloneState.QUEUED and clone.clone_id not in backlog.places for clone in clones)


def _readable(latest: Mapping[str, str]) -> Iterator[Clone]:
    for clone_id, json in latest.items():
        try:
            yield decode_clone(json, clone_id=clone_id)
        except CloneCorrupt:
            _log.error("clone_unreadable", clone_id=clone_id)


def _list_name(student_id: str) -> str:
    return f"clones of {student_id}" if student_id else "clones"
