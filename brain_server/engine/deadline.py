"""Allowances: how long work may go on, and how to wait no longer than that. For the event loop."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from mesh.errors import DeadlineExceeded, ServerDraining

R = TypeVar("R")


class Allowance:
    """How long a piece of work may go on."""

    def __init__(self, deadline: float | None = None) -> None:
        """Takes the deadline in `time.monotonic()` seconds, or None for never."""
        self._deadline = deadline
        self._withdrawn = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the deadline, negative once it passed; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def withdraw(self) -> None:
        """Ends the work at its next check."""
        self._withdrawn = True

    def check(self) -> None:
        """Returns if the work may go on.

        Raises:
            DeadlineExceeded: The deadline passed.
            ServerDraining: It was withdrawn; only while the engine closes is anyone still there to see this.
        """
        if self._withdrawn:
            raise ServerDraining("the engine is closing")
        left = self.seconds_left
        if left is not None and left <= 0:
            raise DeadlineExceeded


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
