"""The feed: a clone's changes as they happen, from any number on.

The store holds every change under its number, so any server can serve any watcher from any point.
Knows nothing of gRPC.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from cloning_server.clone import Clone
from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.listing import CloneListing
from mesh.errors import InvalidField, Violation
from mesh.valkey.wakeups import Wakeups
from mesh.valkey.watch import Outage, Silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The clone as of a change. A heartbeat repeats the last change during a silence."""

    clone: Clone
    heartbeat: bool = False


class Feed:
    """Serves watchers.

    Args:
        changes: Reads the changes.
        listing: Estimates the time left.
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

    async def watch(self, clone_id: str, *, after_sequence: int | None = None) -> AsyncGenerator[Change, None]:
        """Yields the current state and every later change; or every change after number `after_sequence`.

        The current state and heartbeats carry the current queue position and time left. Changes carry those of their
        time, so that every watcher sees the same. Ends after the final state, or at once if `after_sequence` is its
        number. Tolerates a short outage of the store (see `Outage`); if the store has lost what the watch knew last,
        the watch goes on with the state that is left.

        Raises:
            CloneCorrupt: The clone's latest change can't be read.
            CloneNotFound: No clone has this id, or it was erased.
            InvalidField: The clone has no change with this number yet.
            CloneStoreUnavailable: The store does not answer.
        """
        with self._wakeups.waiter(clone_id) as waiter:
            latest = await self._changes.find(clone_id)
            if after_sequence is not None and after_sequence > latest.sequence:
                message = f"must be at most {latest.sequence}, the number of the clone's latest change"
                raise InvalidField([Violation("after_sequence", message)])
            last_sequence = latest.sequence - 1 if after_sequence is None else after_sequence
            outage = Outage()
            silence = Silence(longest_seconds=self._heartbeat_seconds)
            is_current_state = after_sequence is None
            while True:
                for clone in await self._read_changes(latest, after=last_sequence, outage=outage):
                    yield Change(clone=await self._with_estimate(clone) if is_current_state else clone)
                    latest, last_sequence, is_current_state = clone, clone.sequence, False
                    silence.begin()
                if latest.state.is_final:
                    return
                if silence.seconds_left <= 0:
                    yield Change(clone=await self._with_estimate(latest), heartbeat=True)
                    silence.begin()
                await waiter.wait(min(silence.seconds_left, outage.poll_seconds))

    async def _read_changes(self, latest: Clone, *, after: int, outage: Outage) -> list[Clone]:
        """Returns the changes after a number; or the current state, if the store has lost the latest known one."""
        changes: list[Clone] = []
        with outage.tolerated():
            # Reads the latest known change once more: only a clone that was erased lacks it, or a store that restarted.
            changes = await self._changes.read(latest.clone_id, after=max(0, after - 1))
            if latest not in changes:
                return [await self._changes.find(latest.clone_id)]
        return [clone for clone in changes if clone.sequence > after]

    async def _with_estimate(self, clone: Clone) -> Clone:
        (clone,) = await self._listing.with_recent_estimates([clone])
        return clone
