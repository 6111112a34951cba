"""Watches one vLLM: whether it is there, and what it serves.

Knows nothing of students or adapters.
"""

import asyncio
from collections.abc import Awaitable, Callable

from brain_server.vllm_engine.client import Served, VllmClient
from mesh.errors import ModelNotLoaded
from mesh.log import get_logger

# How long an outage, or its end, may go unnoticed while no call meets it.
_LOOK_SECONDS = 1.0

_log = get_logger(__name__)


class VllmWatch:
    """Asks a vLLM how it is, every second and whenever someone doubts it.

    Attributes:
        served: What it serves; None while it can't be used.
        reason: Why it can't be used; empty while it can.
        met: Whether it ever answered.
    """

    def __init__(self, client: VllmClient, *, base_model: str, welcome: Callable[[Served], Awaitable[None]]) -> None:
        """Takes whom to watch.

        Args:
            client: Of the vLLM.
            base_model: The name that it must serve its base model by.
            welcome: Is given its first answer before anyone may use it, and raises `ModelNotLoaded` if none may yet.
        """
        self.served: Served | None = None
        self.reason = "waiting for vLLM"
        self.met = False
        self._client = client
        self._base_model = base_model
        self._welcome = welcome
        self._doubted = asyncio.Event()

    def doubt(self) -> None:
        """Says that vLLM did not answer: nobody uses it until it was asked."""
        self.served, self.reason = None, "vLLM does not answer"
        self._doubted.set()

    async def run(self) -> None:
        """Watches until cancelled."""
        while True:
            self._doubted.clear()
            await self._look()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._doubted.wait()
            except TimeoutError:
                continue
            # The one who doubted met an outage a moment ago; to ask at once again and again would not end it.
            await asyncio.sleep(_LOOK_SECONDS / 10)

    async def _look(self) -> None:
        before = self.reason
        try:
            served = await self._client.ask()
            if served.name != self._base_model:
                self.served, self.reason = None, f"vLLM serves {served.name}, not {self._base_model}"
            else:
                if not self.met:
                    await self._welcome(served)
                self.served, self.reason, self.met = served, "", True
        except ModelNotLoaded as error:
            self.served, self.reason = None, str(error)
        if self.reason != before:
            _log.info("vllm_watched", usable=self.served is not None, reason=self.reason)
