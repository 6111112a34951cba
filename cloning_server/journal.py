"""The journal of a clone while it runs: turns what happens into the clone's changes.

Every state is written, in order; within a state, only what moves the percentage. While the clone store does not answer,
the writer waits: there is no other place for the truth, and the clone goes on where it was.
"""

import math
from dataclasses import replace
from datetime import UTC, datetime

from cloning_server.clone import Clone, CloneState, Failure
from cloning_server.patience import Patience
from cloning_server.registry import Registry
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
    """The one writer of a clone's changes.

    Every method raises `CloneOvertaken` if somebody else changed the clone.

    Attributes:
        clone: As of its latest change.
    """

    def __init__(self, registry: Registry, clone: Clone) -> None:
        self._registry = registry
        self.clone = clone

    async def reach(self, state: CloneState, message: str, *, fraction: float = 0.0) -> None:
        """Tells that this share of a state's work is done, 0 to 1."""
        low, high = SPANS[state]
        progress = max(self.clone.progress, math.floor(low + (high - low) * fraction))
        if (state, progress) != (self.clone.state, self.clone.progress):
            await self._write(replace(self.clone, state=state, progress=progress, message=message))

    async def keep(self, manifest: Manifest) -> None:
        """Tells what was published, so that no later attempt trains again; the clone is deploying from here on."""
        state = CloneState.DEPLOYING
        progress = max(self.clone.progress, SPANS[state][0])
        message = "Loading the model into the brain"
        await self._write(replace(self.clone, state=state, progress=progress, message=message, manifest=manifest))

    async def start_over(self, message: str) -> None:
        """Puts the clone back to its place in the queue, for its next attempt if this one had begun."""
        attempt = self.clone.attempt + (self.clone.state is not CloneState.QUEUED)
        queued = replace(self.clone, state=CloneState.QUEUED, attempt=attempt, progress=0, message=message)
        await self._write(queued)

    async def fail(self, failure: Failure) -> None:
        """Ends the clone without a model."""
        await self._write(replace(self.clone, state=CloneState.FAILED, message=failure.message, failure=failure))

    async def _write(self, changed: Clone) -> None:
        clone = replace(changed, sequence=self.clone.sequence + 1, updated_time=datetime.now(UTC))
        await _WITHOUT_END.insist(lambda: self._registry.change(clone), on=(CloneStoreUnavailable,))
        self.clone = clone
