"""The parts that a server depends on, and whether each answers. Health reports them.

Knows nothing of what the parts are.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.errors import AivoError
from mesh.log import get_logger

# A part that takes longer counts as down; callers of health have timeouts of their own.
CHECK_SECONDS = 1.5
# Many people and browsers ask for health at once; each part is checked once for all of them.
FRESH_SECONDS = 1.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A part that the server depends on; `reason` is empty if the part is available."""

    name: str
    reason: str

    @property
    def available(self) -> bool:
        """Whether it answers."""
        return not self.reason


class DependencyCheck:
    """Checks whether a part answers: one check at a time, whose result everybody shares for `FRESH_SECONDS`.

    A check goes on when its caller gives up. Checks of a part that is down take long; without sharing they would pile
    up and hold the connections and threads that the work needs.

    Args:
        name: Name of the part.
        check: Returns if the part answers, and raises the reason if it does not.

    Attributes:
        latest: What the latest `probe` returned.
    """

    def __init__(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._check = check
        self._check_task: asyncio.Task[str] | None = None
        self._checked_at = -FRESH_SECONDS
        self.latest = Dependency(name=name, reason="not checked yet")

    async def probe(self) -> Dependency:
        """Returns the part's availability. Never fails, and takes no longer than `CHECK_SECONDS`."""
        check = self._check_task
        if check is None or (check.done() and time.monotonic() - self._checked_at > FRESH_SECONDS):
            check = self._check_task = asyncio.create_task(self._find_reason(), name=f"{self._name} check")
        done, _ = await asyncio.wait([check], timeout=CHECK_SECONDS)
        # Not of `_check_task`, which may be a later check by now.
        reason = check.result() if done else f"no answer within {CHECK_SECONDS} s"
        self.latest = Dependency(name=self._name, reason=reason)
        return self.latest

    async def aclose(self) -> None:
        """Cancels the running check."""
        if self._check_task is not None:
            self._check_task.cancel()
            await asyncio.wait([self._check_task])

    async def _find_reason(self) -> str:
        try:
            await self._check()
        except AivoError as error:
            return str(error) or error.reason
        except Exception as error:  # noqa: BLE001 - health never fails; an untyped exception is a bug and is logged
            _log.exception("check_failed", of=self._name)
            return type(error).__name__
        else:
            return ""
        finally:
            self._checked_at = time.monotonic()
