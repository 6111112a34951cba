"""The worker: takes clones off the queue, in order, and runs as many at once as it may.

One server works on a clone store: at its start it takes up again what the one before left unfinished.
"""

import asyncio
import contextlib
from typing import Self

from cloning_server.journal import Journal
from cloning_server.notices import Notices
from cloning_server.patience import Patience
from cloning_server.registry import CloneOvertaken, Registry
from cloning_server.runner import CloneRunner
from mesh.errors import CloneStoreUnavailable
from mesh.log import get_logger

# A notice wakes the worker at once; this is for one that was lost.
LOOK_SECONDS = 5.0

_log = get_logger(__name__)


class Worker:
    """Works while it is entered. What runs when it is left stays unfinished, for whoever starts next.

    Args:
        registry: Where the clones wait.
        notices: Tell when to look.
        runner: Runs them.
        parallel: How many at once.
    """

    def __init__(self, registry: Registry, notices: Notices, runner: CloneRunner, *, parallel: int = 1) -> None:
        self._registry = registry
        self._notices = notices
        self._runner = runner
        self._parallel = parallel
        self._running: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._works = False

    @property
    def works(self) -> bool:
        """Whether clones are taken off the queue."""
        return self._works

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work(), name="worker")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _work(self) -> None:
        await Patience(longest_wait_seconds=1.0).insist(self._take_up_left, on=(CloneStoreUnavailable,))
        self._works = True
        try:
            async with asyncio.TaskGroup() as slots:
                for _ in range(self._parallel):
                    slots.create_task(self._serve_slot())
        finally:
            # Also when a bug ended it: then health says so, and leaving raises it.
            self._works = False

    async def _serve_slot(self) -> None:
        with self._notices.waiter() as waiter:
            while True:
                if not await self._run_next():
                    await waiter.wait(LOOK_SECONDS)

    async def _run_next(self) -> bool:
        """Runs the next clone, or returns False if there is none."""
        try:
            clone = await self._registry.claim()
        except CloneStoreUnavailable:
            # The claim may have been written and only its answer lost.
            await Patience(longest_wait_seconds=1.0).insist(self._take_up_left, on=(CloneStoreUnavailable,))
            return True
        if clone is None:
            return False
        self._running.add(clone.clone_id)
        try:
            await self._runner.run(clone)
        finally:
            self._running.discard(clone.clone_id)
        return True

    async def _take_up_left(self) -> None:
        """Queues what is claimed and not run here, each in its old place."""
        for clone in await self._registry.list_claimed():
            if clone.clone_id in self._running:
                continue
            with contextlib.suppress(CloneOvertaken):
                await Journal(self._registry, clone).start_over("Waiting for a trainer, after a restart")
                _log.info("clone_taken_up", clone_id=clone.clone_id, state=clone.state, attempt=clone.attempt)
