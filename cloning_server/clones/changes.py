"""The changes of a clone: what they are, and who may write the next one.

A clone has one writer at a time, the holder of its lease. Each change carries the token of that lease and the number
after the last change that its writer knows. It is refused if another lease replaced that one, or if another change came
first. The queue and the student's lane move in the same atomic step; see `scripts/change.lua`.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cloning_server.clone import Clone, CloneState, Failure, as_cancelled, as_failed
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import decode_clone, encode_clone
from cloning_server.clones.records import NO_LEASE, Effect, NewChange
from mesh.errors import CloneCorrupt, CloneNotFound
from mesh.log import get_logger

_log = get_logger(__name__)


class CloneOvertaken(Exception):
    """Another server changed or leased the clone; this server must stop running it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedChange:
    """A clone as of a change, and the number of the change among those of all clones."""

    number: int
    clone: Clone


@dataclass(frozen=True, slots=True, kw_only=True)
class JointReading:
    """Changes of several clones, in their order.

    Attributes:
        changes: Those that can be read.
        missing_ids: Of the clones that do not exist.
        unreadable_ids: Of the clones of which no change here can be read.
        more_after: Number after which there are more changes; None if there are none.
    """

    changes: Sequence[NumberedChange]
    missing_ids: frozenset[str]
    unreadable_ids: frozenset[str]
    more_after: int | None


class CloneChanges:
    """Reads and writes clones. Every method raises `CloneStoreUnavailable` while the store does not answer.

    Args:
        store: Holds the clones.
    """

    def __init__(self, store: CloneStore) -> None:
        self._store = store

    async def find(self, clone_id: str) -> Clone:
        """Returns the clone as it is now.

        Raises:
            CloneNotFound: No clone has this id.
            CloneCorrupt: Its latest change can't be read, or is lost although the clone has not ended.
        """
        latest = await self._store.read_latest([clone_id])
        if clone_id not in latest:
            if await self._store.is_unfinished(clone_id):
                raise CloneCorrupt(clone_id=clone_id)
            raise CloneNotFound(clone_id=clone_id)
        return decode_clone(latest[clone_id], clone_id=clone_id)

    async def read(self, clone_id: str, *, after: int, limit: int | None = None) -> list[Clone]:
        """Returns the clone as of each change after number `after`, in order; nothing if no clone has this id.

        Changes that can't be read are left out, and logged.
        """
        changes = await self._store.read_changes(clone_id, after=after, limit=limit)
        return list(_readable(clone_id, changes))

    async def read_joint(self, clone_ids: Sequence[str], *, after: int | None, limit: int) -> JointReading:
        """Returns the changes of several clones as of one moment, in order; see `CloneStore.read_feeds`.

        Changes that can't be read are left out, and logged.
        """
        reading = await self._store.read_feeds(clone_ids, after=after, limit=limit)
        changes = [
            NumberedChange(number=change.number, clone=clone)
            for change in reading.changes
            for clone in _readable(change.clone_id, {change.number: change.clone})
        ]
        return JointReading(
            changes=changes,
            missing_ids=reading.missing_ids,
            unreadable_ids=frozenset(change.clone_id for change in reading.changes)
            - {change.clone.clone_id for change in changes},
            more_after=None if reading.is_whole else reading.changes[-1].number,
        )

    async def are_kept(self, clones: Collection[Clone]) -> bool:
        """Whether the store still has these changes: one that restarts may have lost the latest."""
        stored = await self._store.read_sequences({clone.clone_id: clone.sequence for clone in clones})
        return all(
            clone.clone_id in stored
            and [*_readable(clone.clone_id, {clone.sequence: stored[clone.clone_id]})] == [clone]
            for clone in clones
        )

    async def latest_number(self) -> int:
        """Returns the number of the latest change of any clone; 0 if there is none."""
        return await self._store.read_change_number()

    async def write(self, clone: Clone, *, token: int | None, delay_seconds: float | None = None) -> None:
        """Writes the clone's next change, and updates the queue. A repeated call has no further effect.

        A final change deletes the baseline and lets the student's next clone run.

        Args:
            clone: As of this change.
            token: Of the writer's lease. `NO_LEASE` writes only while there is no lease; None, whatever lease there is.
            delay_seconds: Puts the clone back to its place in the queue, to be claimed after so many seconds at the
                earliest. None: it keeps running.

        Raises:
            CloneOvertaken: Another change came first, or another lease replaced this one.
        """
        change = NewChange(
            clone_id=clone.clone_id,
            student_id=clone.student_id,
            sequence=clone.sequence,
            clone=encode_clone(clone),
            effect=_effect_of(clone.state, is_put_back=delay_seconds is not None),
            token=token,
            delay_seconds=delay_seconds or 0.0,
        )
        if not await self._store.change(change):
            raise CloneOvertaken(clone.clone_id)

    async def cancel(self, clone_id: str) -> Clone:
        """Ends a clone as cancelled, even if another server runs it.

        Returns:
            The clone in its final state, which is another one if it ended first.

        Raises:
            CloneNotFound: No clone has this id.
        """
        while True:
            try:
                clone = await self.find(clone_id)
            except CloneCorrupt as error:
                await self.fail_corrupt(error, clone_id, token=None)
                continue
            if clone.state.is_final:
                return clone
            if await self._try_cancel(clone, token=None):
                return await self.find(clone_id)

    async def cancel_unstarted(self, clone: Clone) -> bool:
        """Cancels a clone that has never run and has no lease; returns False if it has run or has a lease."""
        return not clone.attempts and await self._try_cancel(clone, token=NO_LEASE)

    async def fail_corrupt(self, error: CloneCorrupt, clone_id: str, *, token: int | None) -> None:
        """Ends a clone whose latest change can't be read, or is lost, as failed; the student's next clone can run then.

        Args:
            error: Why it fails.
            clone_id: The clone.
            token: As `write` takes it. Without that lease nothing happens.
        """
        changes = await self._store.read_changes(clone_id, after=0)
        sequence = max(changes, default=0)
        _log.error("clone_unreadable", clone_id=clone_id, sequence=sequence)
        now = datetime.now(UTC)
        *_, clone = [await self._unknown(clone_id, now), *_readable(clone_id, changes)]
        with contextlib.suppress(CloneOvertaken):
            await self.write(as_failed(replace(clone, sequence=sequence), Failure.of(error), now), token=token)

    async def _unknown(self, clone_id: str, now: datetime) -> Clone:
        """A clone of which only the id and the student are known."""
        return Clone(
            clone_id=clone_id,
            student_id=await self._store.find_student(clone_id),
            state=CloneState.QUEUED,
            sequence=0,
            attempt=1,
            progress=0,
            message="",
            created_time=now,
            updated_time=now,
            estimated_seconds=0,
        )

    async def _try_cancel(self, clone: Clone, *, token: int | None) -> bool:
        try:
            await self.write(as_cancelled(clone, datetime.now(UTC)), token=token)
        except CloneOvertaken:
            return False
        return True


def _readable(clone_id: str, changes: Mapping[int, str]) -> Iterator[Clone]:
    """The changes, by number, that can be read."""
    for number, json in changes.items():
        try:
            yield decode_clone(json, clone_id=clone_id)
        except CloneCorrupt:
            _log.error("clone_change_unreadable", clone_id=clone_id, number=number)


def _effect_of(state: CloneState, *, is_put_back: bool) -> Effect:
    if state.is_final:
        return "ends"
    return "waits" if is_put_back else "runs"
