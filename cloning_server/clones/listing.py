"""Lists of clones, how many there are, and where they stand in the queue."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cloning_server.clone import Clone
from cloning_server.clones import estimates
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import decode_clone
from mesh.paging import number_in, token_after


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

    async def list_clones(self, *, student_id: str = "", size: int = 20, token: str = "") -> ClonePage:
        """Returns a page of a student's clones, newest first; an empty id stands for all students.

        Raises:
            InvalidField: The token does not belong to this list.
        """
        below = number_in(token, _list_name(student_id)) if token else None
        # One more than the page holds, to know whether another page follows.
        numbers = await self._store.list_numbers(student_id, below=below, limit=size + 1)
        clones = await self._store.read_latest([clone_id for clone_id, _ in numbers[:size]])
        return ClonePage(
            clones=tuple(map(decode_clone, clones)),
            next_token=token_after(numbers[size - 1][1], _list_name(student_id)) if len(numbers) > size else "",
        )

    async def with_estimates(self, clones: Sequence[Clone]) -> list[Clone]:
        """Returns the clones with their current queue positions and the times that they are likely to take from now."""
        if all(clone.state.is_final for clone in clones):
            return list(clones)
        backlog, now = await self._store.read_backlog(), datetime.now(UTC)
        return [estimates.with_estimate(clone, backlog, parallel=self._parallel, now=now) for clone in clones]

    async def count(self) -> CloneCounts:
        """Counts the clones; cheap enough for a health check."""
        queued_clones, running_clones = await self._store.count()
        return CloneCounts(queued_clones=queued_clones, running_clones=running_clones)


def _list_name(student_id: str) -> str:
    return f"clones of {student_id}" if student_id else "clones"
