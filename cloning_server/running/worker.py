"""The worker: leases clones in the order of the queue, and runs several at once.

Any number of servers share a clone store. A server renews the lease of a clone while it runs it. If the server dies or
hangs, the lease expires, and another server claims the clone. If the first server wakes up, its token is refused, and
it stops.
"""

import asyncio
import contextlib
from collections.abc import Callable

from cloning_server.clone import AttemptOutcome
from cloning_server.clones.changes import CloneChanges, CloneOvertaken
from cloning_server.clones.leases import CloneLease, Leases, Pause
from cloning_server.running.journal import Journal
from cloning_server.running.runner import CloneRunner
from mesh.background import BackgroundTask, cancel_and_wait
from mesh.errors import CloneCorrupt, CloneNotFound, CloneStoreUnavailable
from mesh.log import get_logger
from mesh.valkey.wakeups import Wakeups

# How often to look for clones in case a wake-up was lost. Otherwise a wake-up starts the next clone at once.
POLL_SECONDS = 5.0
# How often to check whether a trainer is ready. The check stays within the process.
SEAT_SECONDS = 0.5
# Between attempts while the store does not answer. Shorter than a lease, so that the store's return is noticed in time.
STORE_PAUSE_SECONDS = 0.5
# How often a lease is renewed while it lasts. Two renewals may get lost.
RENEWALS = 3
# For handing a clone back. If this fails, the clone's lease expires.
HAND_BACK_SECONDS = 5.0
_HAND_BACK_TRIES = 3

_log = get_logger(__name__)


class Worker(BackgroundTask):
    """Takes clones while it is entered. Leaving puts the clones that run back to their places in the queue.

    `is_running` says whether the worker still takes clones.

    Args:
        leases: Lease the clones.
        changes: Write their changes.
        wakeups: Say when to look for clones.
        runner: Runs the clones.
        seats: Returns how many clones may run now: 0 while the server drains, or while no trainer is ready.
        parallel: How many clones run at once.
        lease_seconds: How long a clone waits for another server after this one is lost.
    """

    def __init__(
        self,
        leases: Leases,
        *,
        changes: CloneChanges,
        wakeups: Wakeups,
        runner: CloneRunner,
        seats: Callable[[], int],
        parallel: int = 1,
        lease_seconds: float = 15.0,
    ) -> None:
        self._leases = leases
        self._changes = changes
        self._wakeups = wakeups
        self._runner = runner
        self._parallel = parallel
        self._lease_seconds = lease_seconds
        self._seats = seats
        # Seats of clones that run or are being claimed.
        self._seats_in_use = 0

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as slots:
            for _ in range(self._parallel):
                slots.create_task(self._serve_slot())

    async def _serve_slot(self) -> None:
        with self._wakeups.waiter() as waiter:
            while True:
                pause_seconds = await self._run_next()
                if pause_seconds > 0:
                    await waiter.wait(pause_seconds)

    async def _run_next(self) -> float:
        """Runs the next clone, if there is one and a seat for it; returns how many seconds to wait for the next."""
        if self._seats_in_use >= self._seats():
            return SEAT_SECONDS
        self._seats_in_use += 1
        try:
            return await self._claim_and_run()
        finally:
            self._seats_in_use -= 1

    async def _claim_and_run(self) -> float:
        try:
            claim = await self._leases.claim(seconds=self._lease_seconds)
        except CloneStoreUnavailable:
            # If the claim was written and only its answer was lost, its lease expires.
            return STORE_PAUSE_SECONDS
        except (CloneNotFound, CloneCorrupt):
            # It was cancelled and erased with its student between its claim and the read that follows; or its record
            # can't be read, for which it has failed.
            return 0.0
        if isinstance(claim, Pause):
            # A millisecond later than due, because the store counts in whole milliseconds.
            return POLL_SECONDS if claim.seconds is None else min(POLL_SECONDS, claim.seconds + 0.001)
        await self._run_clone(claim)
        return 0.0

    async def _run_clone(self, lease: CloneLease) -> None:
        """Runs a clone until it has ended, its lease is lost, or the worker is left."""
        journal = Journal(self._changes, lease)
        run = asyncio.create_task(self._runner.run(journal), name="run")
        renewal = asyncio.create_task(self._renew_until_lost(lease), name="renewal")
        try:
            await asyncio.wait((run, renewal), return_when=asyncio.FIRST_COMPLETED)
            if not run.done() and journal.gives_up_lease:
                # The lease is gone because the run itself gives it up.
                await asyncio.wait((run,))
        except asyncio.CancelledError:
            await cancel_and_wait(run)
            await self._hand_back(lease)
            raise
        finally:
            if not run.done():
                _log.warning("lease_lost", clone_id=lease.clone.clone_id)
            try:
                await cancel_and_wait(run)
            finally:
                # Also after a bug in the run: a lease that is renewed for ever holds the clone back from everybody.
                await cancel_and_wait(renewal)

    async def _renew_until_lost(self, lease: CloneLease) -> None:
        """Renews a lease until it is lost."""
        every_seconds = self._lease_seconds / RENEWALS
        with self._wakeups.waiter(lease.clone.clone_id) as waiter:
            pause_seconds = every_seconds
            while True:
                # A change of the clone may mean that somebody claimed or cancelled it.
                await waiter.wait(pause_seconds)
                try:
                    if not await self._leases.renew(lease, seconds=self._lease_seconds):
                        return
                    pause_seconds = every_seconds
                except CloneStoreUnavailable:
                    # Nobody else can claim the clone meanwhile.
                    pause_seconds = min(every_seconds, STORE_PAUSE_SECONDS)

    async def _hand_back(self, lease: CloneLease) -> None:
        """Puts the clone of a run that was cut off back to its place, so that nobody waits for its lease to expire."""
        with contextlib.suppress(CloneStoreUnavailable, CloneNotFound, CloneCorrupt, TimeoutError):
            async with asyncio.timeout(HAND_BACK_SECONDS):
                # A change of the run that was cut off may still arrive between reading the clone and writing it.
                for _ in range(_HAND_BACK_TRIES):
                    if await self._try_hand_back(lease):
                        return

    async def _try_hand_back(self, lease: CloneLease) -> bool:
        current = await self._leases.refresh(lease)
        clone = current.clone
        if clone.state.is_final:
            return True
        journal = Journal(self._changes, current)
        try:
            await journal.put_back("Waiting for a trainer, after a restart", outcome=AttemptOutcome.HANDED_BACK)
        except CloneOvertaken:
            return False
        _log.info("clone_handed_back", clone_id=clone.clone_id, attempt=clone.attempt)
        return True
