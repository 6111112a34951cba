"""The worker: leases clones in the order of their turns, and runs as many at once as it may.

Any number of servers work on a clone store. A lease lasts a while and is renewed while its clone runs; that of a server
that died or hangs expires, and whoever asks next goes on with the clone. The server that hung then finds its token
refused and stops.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

from cloning_server.clone import Outcome
from cloning_server.clones.registry import CloneOvertaken, Lease, Pause, Registry
from cloning_server.clones.wakeups import Notices
from cloning_server.running.journal import Journal
from cloning_server.running.runner import CloneRunner
from mesh.errors import CloneNotFound, CloneStoreUnavailable
from mesh.log import get_logger

# A notice wakes the worker at once; this is for one that was lost.
LOOK_SECONDS = 5.0
# How often to look whether a trainer is ready; it is a question within the process.
SEAT_SECONDS = 0.5
# Between tries while the store does not answer: it is back before anybody's lease has been looked at.
STORE_PAUSE_SECONDS = 0.5
# A lease is renewed this many times while it lasts, so that two lost renewals cost nothing.
RENEWALS = 3
# For the change that hands a clone back; without it, its lease expires.
HAND_BACK_SECONDS = 5.0
_HAND_BACK_TRIES = 3

_log = get_logger(__name__)


class Worker:
    """Works while it is entered. What runs when it is left goes back to its place in the queue.

    Args:
        registry: Where the clones wait.
        notices: Tell when to look.
        runner: Runs them.
        parallel: How many at once.
        lease_seconds: How long a clone waits for another server when this one is lost.
        seats: How many clones may run now: 0 while the server drains, or while none of its trainers is ready.
    """

    def __init__(
        self,
        registry: Registry,
        notices: Notices,
        runner: CloneRunner,
        *,
        seats: Callable[[], int],
        parallel: int = 1,
        lease_seconds: float = 15.0,
    ) -> None:
        self._registry = registry
        self._notices = notices
        self._runner = runner
        self._parallel = parallel
        self._lease_seconds = lease_seconds
        self._seats = seats
        # Clones that run or are being claimed.
        self._taken = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def works(self) -> bool:
        """Whether clones are taken off the queue; not any more once a bug ended it, which leaving raises."""
        return self._task is not None and not self._task.done()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work(), name="worker")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as slots:
            for _ in range(self._parallel):
                slots.create_task(self._serve_slot())

    async def _serve_slot(self) -> None:
        with self._notices.waiter() as waiter:
            while True:
                pause_seconds = await self._run_next()
                if pause_seconds > 0:
                    await waiter.wait(pause_seconds)

    async def _run_next(self) -> float:
        """Runs the next clone if there is a seat; returns how long to wait for one, 0 if there was one."""
        if self._taken >= self._seats():
            return SEAT_SECONDS
        self._taken += 1
        try:
            return await self._claim_and_run()
        finally:
            self._taken -= 1

    async def _claim_and_run(self) -> float:
        try:
            claimed = await self._registry.claim(seconds=self._lease_seconds)
        except CloneStoreUnavailable:
            # If a claim was written and only its answer lost, its lease expires.
            return STORE_PAUSE_SECONDS
        if isinstance(claimed, Pause):
            # A millisecond later than due: the store counts in whole ones.
            return LOOK_SECONDS if claimed.seconds is None else min(LOOK_SECONDS, claimed.seconds + 0.001)
        await self._run(claimed)
        return 0.0

    async def _run(self, lease: Lease) -> None:
        """Runs a clone until it has ended, its lease is lost, or the worker is left."""
        journal = Journal(self._registry, lease)
        run = asyncio.create_task(self._runner.run(journal), name="run")
        hold = asyncio.create_task(self._hold(lease), name="hold")
        try:
            await asyncio.wait((run, hold), return_when=asyncio.FIRST_COMPLETED)
            if not run.done() and journal.leaving:
                # The lease is gone because the run is giving it up.
                await asyncio.wait((run,))
        except asyncio.CancelledError:
            await _end(run)
            await self._hand_back(lease)
            raise
        finally:
            if not run.done():
                _log.warning("lease_lost", clone_id=lease.clone.clone_id)
            await _end(run)
            await _end(hold)

    async def _hold(self, lease: Lease) -> None:
        """Renews a lease until it is lost."""
        every_seconds = self._lease_seconds / RENEWALS
        with self._notices.waiter(lease.clone.clone_id) as waiter:
            pause_seconds = every_seconds
            while True:
                # A change of the clone may be that of somebody who took it or cancelled it.
                await waiter.wait(pause_seconds)
                try:
                    if not await self._registry.renew(lease, seconds=self._lease_seconds):
                        return
                    pause_seconds = every_seconds
                except CloneStoreUnavailable:
                    # Nobody else can take the clone meanwhile.
                    pause_seconds = min(every_seconds, STORE_PAUSE_SECONDS)

    async def _hand_back(self, lease: Lease) -> None:
        """Puts a clone that was cut off back to its place, so that nobody waits for its lease to expire."""
        with contextlib.suppress(CloneStoreUnavailable, CloneNotFound, TimeoutError):
            async with asyncio.timeout(HAND_BACK_SECONDS):
                # A change of the run that was cut off may yet arrive between the reading and the writing.
                for _ in range(_HAND_BACK_TRIES):
                    if await self._try_hand_back(lease):
                        return

    async def _try_hand_back(self, lease: Lease) -> bool:
        clone = await self._registry.find(lease.clone.clone_id)
        if clone.state.is_final:
            return True
        journal = Journal(
            self._registry, Lease(clone=clone, token=lease.token, expected_seconds=lease.expected_seconds)
        )
        try:
            await journal.put_back("Waiting for a trainer, after a restart", outcome=Outcome.HANDED_BACK)
        except CloneOvertaken:
            return False
        _log.info("clone_handed_back", clone_id=clone.clone_id, attempt=clone.attempt)
        return True


async def _end(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end; raises the bug that ended it, if one did."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
