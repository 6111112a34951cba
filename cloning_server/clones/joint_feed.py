"""The joint feed: the changes of several clones in one stream, in the order in which they happened.

A number that all clones share orders the changes, so it alone says where a watcher goes on, whichever clones it
follows. A watch reads what is new to it and keeps the latest state of each clone, never a feed. Knows nothing of gRPC.
"""

from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain

from cloning_server.clone import Clone
from cloning_server.clones.changes import CloneChanges, JointReading, NumberedChange
from cloning_server.clones.feed import Change
from cloning_server.clones.listing import CloneListing
from mesh.errors import CloneCorrupt, CloneNotFound, InvalidField, Violation
from mesh.valkey.wakeups import Waiter, Wakeups
from mesh.valkey.watch import Outage, Silence

# Of a student's latest clones, those that a watch looks at: the two that can be unfinished, and as many that may have
# ended while the watcher was away.
CLONES_PER_STUDENT = 4
# Most changes of one reading: a reading of all feeds of a class holds up the store, and takes memory here.
PAGE_CHANGES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class JointChange(Change):
    """A change of one of several clones.

    Attributes:
        number: Of the change, among the changes of all clones. A heartbeat has that of the last change before it.
    """

    number: int


class JointFeed:
    """Serves watchers of several clones.

    Args:
        changes: Reads the changes.
        listing: Lists the students' clones, and estimates the times left.
        wakeups: Say when to read.
        heartbeat_seconds: Longest silence; see `Silence`.
    """

    def __init__(
        self, changes: CloneChanges, *, listing: CloneListing, wakeups: Wakeups, heartbeat_seconds: float = 10.0
    ) -> None:
        self._changes = changes
        self._listing = listing
        self._wakeups = wakeups
        self._heartbeat_seconds = heartbeat_seconds

    async def watch(
        self, *, clone_ids: Collection[str], student_ids: Collection[str], after: int | None = None
    ) -> AsyncGenerator[JointChange, None]:
        """Yields the current state of each clone and every later change; or every change after number `after`.

        Follows the named clones, and of each student the clones that are not final or, if there is none, the latest.
        With `after` it follows those of the student's latest clones that are not final or have changed since. Clones
        that are accepted later are not followed.

        The current states and heartbeats carry current queue positions and times left. Changes carry those of their
        time, so that every watcher sees the same. During a silence each clone that is not final has a heartbeat. Ends
        when all clones are final. Tolerates a short outage of the store (see `Outage`); if the store has lost its
        latest changes then, the states that are left come once more, and numbers go on from theirs.

        Raises:
            CloneCorrupt: The latest change of one of `clone_ids` can't be read.
            CloneNotFound: No clone has one of `clone_ids`, or it was erased. A student's clone that is erased is no
                longer followed.
            InvalidField: No change has the number `after` yet.
            CloneStoreUnavailable: The store does not answer.
        """
        clones_by_student = await self._listing.list_latest_ids(sorted(student_ids), limit=CLONES_PER_STUDENT)
        all_ids = sorted({*clone_ids, *chain.from_iterable(clones_by_student)})
        with self._wakeups.waiter(*all_ids) as waiter:
            connections = self._wakeups.connections
            reading = await self._read(all_ids, after=None, required_ids=clone_ids)
            for clone_id in sorted(reading.unreadable_ids.intersection(clone_ids)):
                raise CloneCorrupt(clone_id=clone_id)
            changes = reading.changes
            if after is None:
                followed_ids = {*clone_ids, *_present_ids(changes, clones_by_student)}
                changes = [change for change in changes if change.clone.clone_id in followed_ids]
                clones = await self._listing.with_recent_estimates([change.clone for change in changes])
                for change, clone in zip(changes, clones, strict=True):
                    yield JointChange(clone=clone, number=change.number)
                position = changes[-1].number if changes else 0
            else:
                await self._require_past(after)
                # Changes that an older version wrote have number 0.
                position = after or -1
                changes = [change for change in changes if change.number > position or not change.clone.state.is_final]
            followed_clones = {change.clone.clone_id: change.clone for change in changes}
            later = self._follow(
                followed_clones, after=position, required_ids=clone_ids, waiter=waiter, connections=connections
            )
            async with aclosing(later) as later_changes:
                async for later_change in later_changes:
                    yield later_change

    async def _follow(
        self, clones: dict[str, Clone], *, after: int, required_ids: Collection[str], waiter: Waiter, connections: int
    ) -> AsyncGenerator[JointChange, None]:
        """Yields the changes of these clones after a number, and heartbeats, until all clones are final.

        Args:
            clones: As of a reading.
            after: The number.
            required_ids: Of clones that must exist.
            waiter: Says when to read.
            connections: How many connections the wake-ups had had before that reading.
        """
        outage, silence = Outage(), Silence(longest_seconds=self._heartbeat_seconds)
        while clones:
            with outage.tolerated():
                connections_now = self._wakeups.connections
                # A store that has restarted may have lost changes, whose numbers others get then.
                has_lost = connections_now != connections and not await self._changes.are_kept(clones.values())
                reading = await self._read(list(clones), after=None if has_lost else after, required_ids=required_ids)
                connections = connections_now
                for change in reading.changes:
                    yield JointChange(clone=change.clone, number=change.number)
                    clones[change.clone.clone_id] = change.clone
                    after = change.number
                    silence.begin()
                if reading.more_after is not None:
                    after = reading.more_after
                    continue
                clones = {
                    clone_id: clone
                    for clone_id, clone in clones.items()
                    if clone_id not in reading.missing_ids and not clone.state.is_final
                }
            if silence.seconds_left <= 0:
                for clone in await self._listing.with_recent_estimates(list(clones.values())):
                    yield JointChange(clone=clone, number=max(after, 0), heartbeat=True)
                silence.begin()
            if clones:
                await waiter.wait(min(silence.seconds_left, outage.poll_seconds))

    async def _read(
        self, clone_ids: Sequence[str], *, after: int | None, required_ids: Collection[str]
    ) -> JointReading:
        reading = await self._changes.read_joint(clone_ids, after=after, limit=PAGE_CHANGES)
        for clone_id in sorted(reading.missing_ids.intersection(required_ids)):
            raise CloneNotFound(clone_id=clone_id)
        return reading

    async def _require_past(self, number: int) -> None:
        latest = await self._changes.latest_number()
        if number > latest:
            message = f"must be at most {latest}, the number of the latest change of any clone"
            raise InvalidField([Violation("after_sequence", message)])


def _present_ids(changes: Sequence[NumberedChange], clones_by_student: Sequence[Sequence[str]]) -> Iterator[str]:
    """The clones of each student, newest first, that are not final; if there is none, the latest."""
    unfinished_ids = {change.clone.clone_id for change in changes if not change.clone.state.is_final}
    for clone_ids in clones_by_student:
        yield from [clone_id for clone_id in clone_ids if clone_id in unfinished_ids] or clone_ids[:1]
