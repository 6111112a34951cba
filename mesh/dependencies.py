"""The parts that a server leans on: whether each answers, as its health tells people.

Knows nothing of what the parts are.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.errors import AivoError
from mesh.log import get_logger

# A part that takes longer is as good as gone, and whoever asks has a timeout of their own.
CHECK_SECONDS = 1.5
# Health is asked by people and browsers, by many at once; the parts are asked once in their stead.
FRESH_SECONDS = 1.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    """A part the server leans on; the reason is empty if it is available."""

    name: str
    reason: str

    @property
    def available(self) -> bool:
        """Whether it answers."""
        return not self.reason


class DependencyCheck:
    """Whether a part answers: asked one at a time, and once for all who want to know within `FRESH_SECONDS`.

    A question outlives who asked it: those to a part that is down take long, and would otherwise pile up and hold the
    connections and threads that the work needs.

    Args:
        name: Of the part.
        check: Returns if the part answers; what it raises is why not.
    """

    def __init__(self, name: str, check: Callable[[], Awaitable[None]]) -> None:
        self._name = name
        self._check = check
        self._asking: asyncio.Task[str] | None = None
        self._answered = -FRESH_SECONDS

    async def ask(self) -> Dependency:
        """Never fails, and takes no longer than `CHECK_SECONDS`."""
        if self._asking is None or (self._asking.done() and time.monotonic() - self._answered > FRESH_SECONDS):
            self._asking = asyncio.create_task(self._why_missing(), name=f"{self._name} check")
        done, _ = await asyncio.wait([self._asking], timeout=CHECK_SECONDS)
        reason = self._asking.result() if done else f"no answer within {CHECK_SECONDS} s"
        return Dependency(name=self._name, reason=reason)

    async def aclose(self) -> None:
        """Ends the question that is under way."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _why_missing(self) -> str:
        try:
            await self._check()
        except AivoError as error:
            return str(error) or error.reason
        except Exception as error:  # noqa: BLE001 - health never fails; what is not a typed fault is a bug, and logged
            _log.exception("check_failed", of=self._name)
            return type(error).__name__
        else:
            return ""
        finally:
            self._answered = time.monotonic()
