"""The journal of a running clone: turns what happens into the clone's changes.

It writes every state, in order; within a state, only what moves the percentage. While the clone store does not answer,
the journal waits: the clone's state is stored nowhere else. The clone then goes on where it was.
"""

import math
from dataclasses import replace
from datetime import UTC, datetime

from cloning_server.clone import (
    AttemptOutcome,
    Clone,
    CloneState,
    Failure,
    as_cancelled,
    as_failed,
    with_attempt_ended,
    with_attempt_started,
)
from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.estimates import seconds_left
from cloning_server.clones.leases import CloneLease
from cloning_server.running.retry import Retry
from mesh.adapters.manifest import Manifest
from mesh.errors import CloneStoreUnavailable

# The percentages at which each state begins and ends. They divide as the time of a clone of 100 responses does with an
# empty reply cache. Work that is skipped (replies distilled for a classmate) is a jump ahead, never a step back.
SPANS = {
    CloneState.QUEUED: (0, 0),
    CloneState.LOADING_BASE_MODEL: (0, 5),
    CloneState.CREATING_ADAPTER: (5, 35),
    CloneState.FINE_TUNING: (35, 85),
    CloneState.OPTIMIZING: (85, 93),
    CloneState.SAVING: (93, 96),
    CloneState.DEPLOYING: (96, 99),
    CloneState.COMPLETED: (100, 100),
}
_FOREVER = Retry(longest_wait_seconds=2.0)


class Journal:
    """Writes a clone's changes under its lease.

    Every method raises `CloneOvertaken` if the lease is lost.

    Attributes:
        clone: As of its latest change.
        gives_up_lease: Whether the latest change, which may still be under way, gives up the lease.
    """

    def __init__(self, changes: CloneChanges, lease: CloneLease) -> None:
        self._changes = changes
        self._lease = lease
        self.clone = lease.clone
        self.gives_up_lease = False

    async def take_over(self) -> None:
        """Ends an attempt whose lease expired, and begins the next one."""
        now = datetime.now(UTC)
        clone = with_attempt_ended(self.clone, AttemptOutcome.LEASE_EXPIRED, now)
        message = "Starting again after a server was lost"
        await self._write(
            replace(clone, state=CloneState.QUEUED, attempt=clone.attempt + 1, progress=0, message=message)
        )

    async def reach(self, state: CloneState, message: str, *, fraction: float = 0.0) -> None:
        """Writes that this share of a state's work is done, 0 to 1."""
        low, high = SPANS[state]
        progress = max(self.clone.progress, math.floor(low + (high - low) * fraction))
        if (state, progress) != (self.clone.state, self.clone.progress):
            await self._write(replace(self._started(), state=state, progress=progress, message=message))

    async def deploy(self, manifest: Manifest) -> None:
        """Writes which version was committed, and that the clone is deploying. No later attempt trains again."""
        state = CloneState.DEPLOYING
        clone = self._started()
        progress = max(clone.progress, SPANS[state][0])
        message = "Loading the model into the brain"
        await self._write(replace(clone, state=state, progress=progress, message=message, manifest=manifest))

    async def put_back(self, message: str, *, outcome: str, seconds: float = 0.0) -> None:
        """Gives up the lease: the clone goes back to its place in the queue, for at least so many seconds.

        An attempt that is handed back before its first change does not count. One that fails before its first change
        does: otherwise a fault that comes at once would be repeated for ever.
        """
        clone = self.clone if outcome == AttemptOutcome.HANDED_BACK else self._started()
        attempt = clone.attempt + _has_started(clone)
        clone = with_attempt_ended(clone, outcome, datetime.now(UTC))
        clone = replace(clone, state=CloneState.QUEUED, attempt=attempt, progress=0, message=message)
        await self._write(clone, delay_seconds=seconds)

    async def complete(self, message: str) -> None:
        """Ends the clone as completed."""
        clone = with_attempt_ended(self.clone, AttemptOutcome.COMPLETED, datetime.now(UTC))
        await self._write(replace(clone, state=CloneState.COMPLETED, progress=100, message=message))

    async def fail(self, failure: Failure) -> None:
        """Ends the clone as failed."""
        await self._write(as_failed(self.clone, failure, datetime.now(UTC)))

    async def cancel(self) -> None:
        """Ends the clone as cancelled."""
        await self._write(as_cancelled(self.clone, datetime.now(UTC)))

    def _started(self) -> Clone:
        return self.clone if _has_started(self.clone) else with_attempt_started(self.clone, datetime.now(UTC))

    async def _write(self, changed: Clone, *, delay_seconds: float | None = None) -> None:
        now = datetime.now(UTC)
        clone = replace(
            changed,
            sequence=self.clone.sequence + 1,
            updated_time=now,
            queue_position=0,
            seconds_left=0 if changed.state.is_final else self._seconds_left(changed, now),
        )
        self.gives_up_lease = clone.state.is_final or delay_seconds is not None
        await _FOREVER.call(
            lambda: self._changes.write(clone, token=self._lease.token, delay_seconds=delay_seconds),
            on=(CloneStoreUnavailable,),
        )
        self.clone = clone

    def _seconds_left(self, clone: Clone, now: datetime) -> int:
        expected = self._lease.expected_seconds
        if clone.state is CloneState.QUEUED:
            return expected
        elapsed = (now - clone.attempts[-1].started_time).total_seconds()
        return seconds_left(expected, progress=clone.progress, elapsed=max(0.0, elapsed))


def _has_started(clone: Clone) -> bool:
    """Whether the current attempt is among the clone's attempts, which are numbered from 1."""
    return len(clone.attempts) == clone.attempt
