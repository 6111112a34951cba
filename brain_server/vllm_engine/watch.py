"""Watches one vLLM server: whether it can be used, and what it serves.

Knows nothing of students or adapters.
"""

import asyncio
from collections.abc import Awaitable, Callable

from brain_server.vllm_engine.client import ServedModel, VllmClient
from mesh.errors import ModelNotLoaded
from mesh.log import get_logger

# How long an outage, or its end, may go unnoticed while there are no calls.
_CHECK_SECONDS = 1.0

_log = get_logger(__name__)


class VllmWatch:
    """Checks a vLLM server every second, and soon after a call could not reach it.

    Attributes:
        served_model: What it serves; None while it can't be used.
        reason: Why it can't be used; empty while it can.
        has_answered: Whether it could ever be used.
    """

    def __init__(
        self, client: VllmClient, *, base_model: str, on_first_answer: Callable[[ServedModel], Awaitable[None]]
    ) -> None:
        """Takes the server to watch.

        Args:
            client: A client of it.
            base_model: The name by which it must serve its base model.
            on_first_answer: Prepares a server that answers for the first time. Raises `ModelNotLoaded` if it can't be
                used yet; the next check tries again.
        """
        self.served_model: ServedModel | None = None
        self.reason = "waiting for vLLM"
        self.has_answered = False
        self._client = client
        self._base_model = base_model
        self._on_first_answer = on_first_answer
        self._outage_reported = asyncio.Event()

    def report_outage(self) -> None:
        """Reports that vLLM did not answer a call: it is not used until a check succeeds."""
        self.served_model, self.reason = None, "vLLM does not answer"
        self._outage_reported.set()

    async def run(self) -> None:
        """Checks until cancelled."""
        while True:
            self._outage_reported.clear()
            await self._check()
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    await self._outage_reported.wait()
            except TimeoutError:
                continue
            # A call met an outage a moment ago. Checking again at once would not end it.
            await asyncio.sleep(_CHECK_SECONDS / 10)

    async def _check(self) -> None:
        previous_reason = self.reason
        try:
            served_model = await self._client.query_served_model()
            if served_model.name != self._base_model:
                self.served_model, self.reason = None, f"vLLM serves {served_model.name}, not {self._base_model}"
            else:
                if not self.has_answered:
                    await self._on_first_answer(served_model)
                self.served_model, self.reason, self.has_answered = served_model, "", True
        except ModelNotLoaded as error:
            self.served_model, self.reason = None, str(error)
        if self.reason != previous_reason:
            _log.info("vllm_state_changed", usable=self.served_model is not None, reason=self.reason)
