"""A breaker: while the adapter store does not answer, nobody waits for it, and one probe at a time asks again."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from mesh.errors import AivoError
from mesh.log import get_logger

_log = get_logger(__name__)


class Breaker:
    """Opens when the store does not answer, and closes when it does. For the event loop alone.

    Args:
        pause_seconds: Between the end of a failed probe and the next one.
    """

    def __init__(self, *, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._probe_from: float | None = None
        self._probe: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._probe_from is not None

    def open(self) -> None:
        """Notes that the store did not answer."""
        self._probe_from = time.monotonic() + self._pause_seconds

    def close(self) -> None:
        """Notes that the store answered."""
        self._probe_from = None

    def probe(self, ask_store: Callable[[], Awaitable[object]]) -> "asyncio.Task[None] | None":
        """Asks the store in the background; returns None if it is too early, or if another probe is under way.

        Args:
            ask_store: Reads from the store, and calls `open` or `close`.
        """
        is_due = self._probe_from is not None and time.monotonic() >= self._probe_from
        if not is_due or (self._probe is not None and not self._probe.done()):
            return None
        self._probe = asyncio.create_task(self._ask(ask_store), name="adapter store probe")
        return self._probe

    async def aclose(self) -> None:
        """Cancels the probe that is under way."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    async def _ask(self, ask_store: Callable[[], Awaitable[object]]) -> None:
        try:
            await ask_store()
        except AivoError:
            # What is wrong with the document that is read is for who asks for it next.
            return
        except Exception:  # noqa: BLE001 - whatever a bug raises; it is logged
            _log.exception("probe_crashed")
            self.open()
