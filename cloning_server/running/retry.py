"""Patience: how long what is down for now is tried again."""

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
class Patience:
    """Tries again after growing waits.

    Attributes:
        seconds: After the first failure; what fails later than this has failed.
        first_wait_seconds: Before the second try; doubles with each.
        longest_wait_seconds: Where the doubling ends.
    """

    seconds: float = math.inf
    first_wait_seconds: float = 0.2
    longest_wait_seconds: float = 5.0

    async def insist(self, what: Callable[[], Awaitable[T]], *, on: tuple[type[AivoError], ...] = (Unavailable,)) -> T:
        """Returns what the first try returns that doesn't fail with one of these errors.

        Raises:
            AivoError: The last of these errors, once patience is over; any other at once.
        """
        wait_seconds = self.first_wait_seconds
        ends: float | None = None
        while True:
            try:
                return await what()
            except on as error:
                now = time.monotonic()
                ends = now + self.seconds if ends is None else ends
                if now + wait_seconds > ends:
                    raise
                _log.warning("will_try_again", reason=error.reason, wait_seconds=wait_seconds)
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, self.longest_wait_seconds)
