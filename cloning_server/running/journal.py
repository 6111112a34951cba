"""The journal of a clone while it runs: turns what happens into the clone's changes.

Every state is written, in order; within a state, only what moves the percentage. While the clone store does not answer,
the writer waits: there is no other place for the truth, and the clone goes on where it was.
"""

import math
from dataclasses import replace
from datetime import UTC, datetime

from cloning_server.clone import (
    Clone,
    CloneState,
    Failure,
    Outcome,
    cancelled,
    with_attempt_begun,
    with_attempt_ended,
)
from cloning_server.clones import pace
from cloning_server.clones.registry import Lease, Registry
from cloning_server.running.retry import Patience
from mesh.adapters.manifest import Manifest
from mesh.errors import CloneStoreUnavailable

# Where each state begins and ends on the way from 0 to 100, about as the time of a clone of 100 responses divides with
# nothing distilled before. Work that is not there (replies distilled for a classmate) is a jump, never a step back.
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
_WITHOUT_END = Patience(longest_wait_seconds=2.0)


class Journal:
    """The writer of a clone's changes under its lease.

    Every method raises `CloneOvertaken` if the lease is lost.

    Attributes:
        clone: As of its latest change.
        leaving: Whether a change that gives the lease up is being written, or was.
    """

    def __init__(self, registry: Registry, lease: Lease) -> None:
        self._registry = registry
        self._lease = lease
        self.clone = lease.clone
        self.leaving = False

    async def take_over(self) -> None:
        """Begins the next attempt in place of one whose lease expired."""
        now = datetime.now(UTC)
        clone = with_attempt_ended(self.clone, Outcome.LEASE_EXPIRED, now)
        message = "Taken up again, as its server was lost"
        await self._write(
            replace(clone, state=CloneState.QUEUED, attempt=clone.attempt + 1, progress=0, message=message)
        )

    async def reach(self, state: CloneState, message: str, *, fraction: float = 0.0) -> None:
        """Tells that this share of a state's work is done, 0 to 1."""
        low, high = SPANS[state]
        progress = max(self.clone.progress, math.floor(low + (high - low) * fraction))
        if (state, progress) != (self.clone.state, self.clone.progress):
            await self._write(replace(self._begun(), state=state, progress=progress, message=message))

    async def keep(self, manifest: Manifest) -> None:
        """Tells what was committed, so that no later attempt trains again; the clone is deploying from here on."""
        state = CloneState.DEPLOYING
        clone = self._begun()
        progress = max(clone.progress, SPANS[state][0])
        message = "Loading the model into the brain"
        await self._write(replace(clone, state=state, progress=progress, message=message, manifest=manifest))

    async def put_back(self, message: str, *, outcome: str, seconds: float = 0.0) -> None:
        """Gives the lease up: the clone goes back to its place in the queue, for at least so long.

        Its next attempt is another one, unless this one is handed back before it began. One that failed before it could
        tell anything counts: else a fault that comes at once would be tried again for ever.
        """
        clone = self.clone if outcome == Outcome.HANDED_BACK else self._begun()
        attempt = clone.attempt + _has_begun(clone)
        clone = with_attempt_ended(clone, outcome, datetime.now(UTC))
        clone = replace(clone, state=CloneState.QUEUED, attempt=attempt, progress=0, message=message)
        await self._write(clone, put_off_seconds=seconds)

    async def complete(self, message: str) -> None:
        """Ends the clone well."""
        clone = with_attempt_ended(self.clone, Outcome.COMPLETED, datetime.now(UTC))
        await self._write(replace(clone, state=CloneState.COMPLETED, progress=100, message=message))

    async def fail(self, failure: Failure) -> None:
        """Ends the clone without a model."""
        clone = with_attempt_ended(self.clone, failure.reason, datetime.now(UTC))
        await self._write(replace(clone, state=CloneState.FAILED, message=failure.message, failure=failure))

    async def cancel(self) -> None:
        """Ends the clone as cancelled."""
        await self._write(cancelled(self.clone, datetime.now(UTC)))

    def _begun(self) -> Clone:
        return self.clone if _has_begun(self.clone) else with_attempt_begun(self.clone, datetime.now(UTC))

    async def _write(self, changed: Clone, *, put_off_seconds: float | None = None) -> None:
        now = datetime.now(UTC)
        clone = replace(
            changed,
            sequence=self.clone.sequence + 1,
            updated_time=now,
            queue_position=0,
            seconds_left=0 if changed.state.is_final else self._left_seconds(changed, now),
        )
        self.leaving = clone.state.is_final or put_off_seconds is not None
        await _WITHOUT_END.insist(
            lambda: self._registry.change(clone, token=self._lease.token, put_off_seconds=put_off_seconds),
            on=(CloneStoreUnavailable,),
        )
        self.clone = clone

    def _left_seconds(self, clone: Clone, now: datetime) -> int:
        expected = self._lease.expected_seconds
        if clone.state is CloneState.QUEUED:
            return expected
        elapsed = (now - clone.attempts[-1].started_time).total_seconds()
        return pace.left_seconds(expected, progress=clone.progress, elapsed=max(0.0, elapsed))


def _has_begun(clone: Clone) -> bool:
    """Whether its current attempt is among its attempts, which are numbered from 1."""
    return len(clone.attempts) == clone.attempt
