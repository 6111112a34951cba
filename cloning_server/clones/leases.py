"""Leases: the right to run a clone, for a server that renews it.

A lease lasts for some seconds. Once it has expired, another server can claim the clone, and the new lease's token
replaces the old one.
"""

from dataclasses import dataclass, replace

from cloning_server.clone import Baseline, Clone
from cloning_server.clones import estimates
from cloning_server.clones.changes import CloneChanges, CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.codec import decode_baseline
from mesh.errors import BaselineUnreadable, CloneCorrupt
from mesh.sealing.sealing import CannotOpen, Sealing


@dataclass(frozen=True, slots=True, kw_only=True)
class CloneLease:
    """The right to run a clone, until another lease replaces it.

    Attributes:
        clone: As of the claim, or of the last `refresh`.
        token: Goes with each change of the clone; larger than the token of every earlier lease.
        expected_seconds: How long clones of this size took.
    """

    clone: Clone
    token: int
    expected_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Nothing to claim. Ask again after `seconds`, or when a clone is accepted; None means only the latter."""

    seconds: float | None


class Leases:
    """Leases clones to servers. Every method raises `CloneStoreUnavailable` while the store does not answer.

    Args:
        store: Holds the clones.
        sealing: Opens their baselines.
    """

    def __init__(self, store: CloneStore, *, sealing: Sealing) -> None:
        self._store = store
        self._sealing = sealing
        self._changes = CloneChanges(store)

    async def claim(self, *, seconds: float) -> CloneLease | Pause:
        """Leases the next clone. A clone whose lease has expired comes first.

        Args:
            seconds: How long the lease lasts unless it is renewed.

        Raises:
            CloneNotFound: The clone was erased after it was leased.
            CloneCorrupt: The clone's record can't be read. The clone has failed for it.
        """
        claim = await self._store.claim(seconds=seconds)
        if claim.clone_id is None:
            return Pause(seconds=claim.due_seconds)
        try:
            clone = await self._changes.find(claim.clone_id)
        except CloneCorrupt as error:
            await self._changes.fail_corrupt(error, claim.clone_id, token=claim.token)
            raise
        expected_seconds = estimates.expected_seconds(clone, await self._store.read_backlog())
        return CloneLease(clone=clone, token=claim.token, expected_seconds=expected_seconds)

    async def renew(self, lease: CloneLease, *, seconds: float) -> bool:
        """Makes a lease last so many seconds from now on; returns False if it was replaced or the clone has ended."""
        return await self._store.renew(lease.clone.clone_id, token=lease.token, seconds=seconds)

    async def refresh(self, lease: CloneLease) -> CloneLease:
        """Returns the lease with its clone as it is now.

        Raises:
            CloneNotFound: The clone was erased.
            CloneCorrupt: Its record can't be read.
        """
        return replace(lease, clone=await self._changes.find(lease.clone.clone_id))

    async def read_baseline(self, clone_id: str) -> Baseline:
        """Returns the baseline that the clone learns from.

        Raises:
            CloneOvertaken: The clone is final, so its baseline is deleted.
            BaselineUnreadable: The store has lost it, or no master key of this server opens it.
            CloneCorrupt: What it opens to is no baseline.
            KeyServiceUnavailable: The service that keeps the master key does not answer.
        """
        sealed = await self._store.read_baseline(clone_id)
        if sealed is None:
            if await self._store.is_unfinished(clone_id):
                raise BaselineUnreadable("the store has lost it", clone_id=clone_id, key="")
            raise CloneOvertaken(clone_id)
        try:
            json = await self._sealing.open(sealed, context=clone_id)
        except CannotOpen as error:
            raise BaselineUnreadable(str(error), clone_id=clone_id, key=error.key) from None
        return decode_baseline(json, clone_id=clone_id)

    async def record_pace(self, *, seconds: float, responses: int) -> None:
        """Lets a clone that completed count in later estimates.

        Of two calls at the same time, one may have no effect. A moving average tolerates that.
        """
        pace = (await self._store.read_backlog()).pace
        await self._store.write_pace(estimates.blend_pace(pace, seconds=seconds, responses=responses))
