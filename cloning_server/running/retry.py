"""Retries: how often, and for how long, a call is repeated that fails with a temporary error."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from mesh.errors import AivoError, Unavailable
from mesh.log import get_logger

T = TypeVar("T")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Repeats a call after growing waits.

    Attributes:
        seconds: How long to repeat, counted from the first failure.
        first_wait_seconds: Wait before the second attempt; doubles with each attempt.
        longest_wait_seconds: Upper limit of the wait.
    """

    seconds: float = math.inf
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 5.0

    async def call(
        self, operation: Callable[[], Awaitable[T]], *, on: tuple[type[AivoError], ...] = (Unavailable,)
    ) -> T:
        """Calls until the operation succeeds, and returns its result.

        Args:
            operation: Is called again after each failure.
            on: The errors after which to repeat.

        Raises:
            AivoError: One of these errors after the time is over; any other error at once.
        """
        wait_seconds = self.first_wait_seconds
        ends: float | None = None
        while True:
            try:
                return await operation()
            except on as error:
                now = time.monotonic()
                ends = now + self.seconds if ends is None else ends
                if now + wait_seconds > ends:
                    raise
                _log.warning("retry_scheduled", reason=error.reason, wait_seconds=wait_seconds)
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, self.longest_wait_seconds)
