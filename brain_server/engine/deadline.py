"""Deadlines that can be withdrawn early, and waits that respect them. For the event loop."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from mesh.errors import DeadlineExceeded, ServerDraining

R = TypeVar("R")


class Allowance:
    """Permission to work until a deadline, or until it is withdrawn."""

    def __init__(self, deadline: float | None = None) -> None:
        """Takes the deadline in `time.monotonic()` seconds; None for no deadline."""
        self._deadline = deadline
        self._withdrawn = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the deadline, negative after it; None without one."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    def withdraw(self) -> None:
        """Withdraws the permission: the work ends at its next check."""
        self._withdrawn = True

    def check(self) -> None:
        """Raises if the work must end.

        Raises:
            DeadlineExceeded: The deadline passed.
            ServerDraining: The permission was withdrawn. A caller sees this only while the engine closes: otherwise
                only requests that nobody waits for are withdrawn.
        """
        if self._withdrawn:
            raise ServerDraining("the engine is closing")
        seconds = self.seconds_left
        if seconds is not None and seconds <= 0:
            raise DeadlineExceeded


async def within(awaitable: Awaitable[R], allowance: Allowance) -> R:
    """Awaits until the allowance's deadline at most.

    Raises:
        DeadlineExceeded: The deadline passed first.
    """
    try:
        async with asyncio.timeout(allowance.seconds_left) as limit:
            return await awaitable
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded from None


async def wait_until_done(future: asyncio.Future[R]) -> None:
    """Waits until a future is done, ignoring its outcome; a cancellation meanwhile is raised only then.

    For work that stops soon and must not be abandoned before.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if not future.cancelled():
        # Marks the error as retrieved, so that asyncio does not log it.
        future.exception()
    if cancelled is not None:
        raise cancelled
