"""Turns on the torch thread: one piece of work at a time, in the order it came, and no more waiting than a limit.

Work that is no longer wanted, because its deadline passed or nobody waits for it, never starts or stops by itself.
Knows nothing of models.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mesh.errors import DeadlineExceeded, QueueFull, ServerDraining

R = TypeVar("R")

# Of the latest turn in the mean duration: a mean over about the last ten follows a change of load within a minute.
_LATEST_WEIGHT = 0.1
# Told to a caller who meets a full queue before any turn ended.
_FIRST_RETRY_SECONDS = 1.0


class Allowance:
    """How long a piece of work may go on. Asked on the torch thread, withdrawn from any."""

    def __init__(self, deadline: float | None = None) -> None:
        """Takes the deadline in `time.monotonic()` seconds, or None for never."""
        self._deadline = deadline
        self._withdrawn = threading.Event()

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the deadline, negative once it passed; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def withdraw(self) -> None:
        """Ends the work at its next check."""
        self._withdrawn.set()

    def check(self) -> None:
        """Returns if the work may go on.

        Raises:
            DeadlineExceeded: The deadline passed.
            ServerDraining: It was withdrawn; only while the engine closes is anyone still there to see this.
        """
        if self._withdrawn.is_set():
            raise ServerDraining("the engine is closing")
        left = self.seconds_left
        if left is not None and left <= 0:
            raise DeadlineExceeded


class Turns:
    """Gives out the torch thread."""

    def __init__(self, executor: ThreadPoolExecutor, *, limit: int) -> None:
        """Takes the executor, whose one thread the work runs on, and how many may wait beside the one that runs."""
        self._executor = executor
        self._limit = limit
        self._present: set[Allowance] = set()
        self._lock = asyncio.Lock()
        self._closing = False
        self._mean_seconds: float | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return max(0, len(self._present) - self._lock.locked())

    @property
    def busy(self) -> bool:
        """Whether some work has its turn."""
        return self._lock.locked()

    @contextmanager
    def place(self, deadline: float | None) -> Iterator[Allowance]:
        """A place among those who wait or run, from the arrival of a request to its end.

        Raises:
            QueueFull: All places are taken. A place is likely free after the mean duration of a turn.
            ServerDraining: The engine is closing.
        """
        if self._closing:
            raise ServerDraining("the engine is closing")
        if len(self._present) > self._limit:
            raise QueueFull(limit=self._limit, retry_seconds=self._mean_seconds or _FIRST_RETRY_SECONDS)
        allowance = Allowance(deadline)
        self._present.add(allowance)
        try:
            yield allowance
        finally:
            allowance.withdraw()
            self._present.discard(allowance)

    async def run(self, work: Callable[[], R], allowance: Allowance) -> R:
        """Runs the work when its turn comes. Cancelled, it returns once the work has stopped.

        Raises:
            DeadlineExceeded: The deadline passed, waiting or working.
            ServerDraining: The engine is closing.
        """
        await within(self._lock.acquire(), allowance)
        try:
            allowance.check()
            return await self._work(work, allowance)
        finally:
            self._lock.release()

    def close(self) -> None:
        """Stops what runs and refuses what waits."""
        self._closing = True
        for allowance in self._present:
            allowance.withdraw()

    async def _work(self, work: Callable[[], R], allowance: Allowance) -> R:
        started = time.monotonic()
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # A thread can't be cancelled: the turn ends when the work has seen that nobody wants it.
            allowance.withdraw()
            await ended(future)
            raise
        finally:
            seconds = time.monotonic() - started
            mean = seconds if self._mean_seconds is None else self._mean_seconds
            self._mean_seconds = mean + _LATEST_WEIGHT * (seconds - mean)


async def within(waiting: Awaitable[R], allowance: Allowance) -> R:
    """Waits for something no longer than the allowance.

    Raises:
        DeadlineExceeded: The deadline passed first.
    """
    try:
        async with asyncio.timeout(allowance.seconds_left) as limit:
            return await waiting
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded from None


async def ended(future: asyncio.Future[R]) -> None:
    """Waits for the end of something, whatever it is, also while being cancelled; then the cancellation goes on.

    For work that stops very soon but may not be left before.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if not future.cancelled():
        # Marks it as seen.
        future.exception()
    if cancelled is not None:
        raise cancelled
