"""Records alerts in the background, so that no student waits for the store."""

import asyncio
import uuid
from typing import Protocol

from brain_server.safety.agent import SafetyFlag
from brain_server.safety.verdict import SafetyAction
from mesh.alerts.alert import NewFinding
from mesh.alerts.alert_store import AlertStore
from mesh.background import BackgroundTask
from mesh.errors import AlertStoreUnavailable
from mesh.log import get_logger

# Findings that wait for a store that is down, some hundred bytes each. The oldest goes first.
_MOST_WAITING = 1000
_RETRY_SECONDS = 0.5
# How long a server that shuts down still tries.
_LAST_SECONDS = 3.0

_log = get_logger(__name__)


class FlagCounter(Protocol):
    """Counts what became of flags, for metrics."""

    def count(self, outcome: str) -> None:
        """Counts one flag: `recorded`, or `lost`."""
        ...


class AlertRecorder(BackgroundTask):
    """Writes flags to the alert store while it is entered. Leaving writes what is left, for some seconds.

    Args:
        store: Keeps the alerts. With None, flags are counted as lost and logged, and no adult hears of them.
        counter: Counts what became of them.
        keep_text: Whether alerts keep what was written.
        with_webhook: Whether alerts are to be delivered to the webhook.
    """

    def __init__(self, store: AlertStore | None, *, counter: FlagCounter, keep_text: bool, with_webhook: bool) -> None:
        self._store = store
        self._counter = counter
        self._keep_text = keep_text
        self._with_webhook = with_webhook
        self._findings: asyncio.Queue[NewFinding] = asyncio.Queue(_MOST_WAITING)

    def add(self, flag: SafetyFlag) -> None:
        """Takes a flag to record; returns at once."""
        if self._store is None or self._findings.full():
            self._counter.count("lost")
            _log.error("alert_lost", reason="the store is down" if self._store else "the brain has no REDIS_URL")
            return
        verdict = flag.verdict
        finding = NewFinding(
            finding_id=uuid.uuid4().hex,
            student_id=flag.student_id or "",
            probabilities={
                finding.category.value: finding.probability
                for finding in verdict.findings
                if finding.action >= SafetyAction.REFUSE
            },
            action=verdict.action.value,
            text=verdict.text.name,
            guard=verdict.guard,
            request_id=flag.request_id,
            words=flag.words if self._keep_text else "",
        )
        self._findings.put_nowait(finding)

    async def __aexit__(self, *error: object) -> None:
        try:
            async with asyncio.timeout(_LAST_SECONDS):
                await self._findings.join()
        except TimeoutError:
            _log.error("alerts_lost", count=self._findings.qsize())
        await super().__aexit__(*error)

    async def _run(self) -> None:
        while True:
            finding = await self._findings.get()
            try:
                await self._record(finding)
            except Exception:
                # A bug: this finding is lost, and must not take those that wait with it.
                self._counter.count("lost")
                _log.error("alert_lost", reason="a bug in recording it")
                raise
            finally:
                self._findings.task_done()

    async def _record(self, finding: NewFinding) -> None:
        assert self._store is not None
        while True:
            try:
                await self._store.record(finding, with_webhook=self._with_webhook)
            except AlertStoreUnavailable as error:
                _log.warning("alert_delayed", reason=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._counter.count("recorded")
                return
