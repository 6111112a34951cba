"""Serves watchers of alerts from any number on. Knows nothing of gRPC."""

import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from mesh.alerts.alert import Alert
from mesh.alerts.alert_store import AlertStore
from mesh.errors import AlertStoreUnavailable, InvalidField, Violation
from mesh.valkey.wakeups import Wakeups

# Covers a restart of the store. A watcher that resumes loses nothing, so longer is not better.
OUTAGE_SECONDS = 20.0
_OUTAGE_POLL_SECONDS = 1.0
_ALERTS_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertEvent:
    """An alert that changed; None is a heartbeat. `sequence` is the number to resume after."""

    sequence: int
    alert: Alert | None


class AlertFeed:
    """Serves watchers.

    Args:
        store: Holds the alerts.
        wakeups: Say when to read; of `AlertStore.channel`.
        heartbeat_seconds: Longest silence.
    """

    def __init__(self, store: AlertStore, *, wakeups: Wakeups, heartbeat_seconds: float) -> None:
        self._store = store
        self._wakeups = wakeups
        self._heartbeat_seconds = heartbeat_seconds

    async def watch(self, *, after_sequence: int | None, student_id: str) -> AsyncGenerator[AlertEvent, None]:
        """Yields every alert that changes, in its latest state, without end.

        Args:
            after_sequence: The number of the last change that the watcher knows. None: alerts that nobody has
                acknowledged come first.
            student_id: Only this student's; empty for all.

        Raises:
            InvalidField: There is no change with this number yet.
            AlertStoreUnavailable: The store does not answer, for longer than `OUTAGE_SECONDS` once watching.
        """
        with self._wakeups.waiter() as waiter:
            latest = await self._store.latest_sequence()
            if after_sequence is not None and after_sequence > latest:
                message = f"must be at most {latest}, the number of the latest change"
                raise InvalidField([Violation("after_sequence", message)])
            last_sequence = after_sequence or 0
            silent_since = answered_at = time.monotonic()
            while True:
                try:
                    alerts = await self._store.read_after(last_sequence, student_id=student_id, limit=_ALERTS_AT_ONCE)
                    answered_at = time.monotonic()
                except AlertStoreUnavailable:
                    if time.monotonic() - answered_at > OUTAGE_SECONDS:
                        raise
                    alerts = []
                for alert in alerts:
                    is_old = after_sequence is None and alert.sequence <= latest
                    last_sequence = alert.sequence
                    if not (is_old and alert.acknowledge_time):
                        yield AlertEvent(sequence=alert.sequence, alert=alert)
                        silent_since = time.monotonic()
                if len(alerts) == _ALERTS_AT_ONCE:
                    continue
                silence_left = silent_since + self._heartbeat_seconds - time.monotonic()
                if silence_left <= 0:
                    yield AlertEvent(sequence=last_sequence, alert=None)
                    silent_since = time.monotonic()
                    silence_left = self._heartbeat_seconds
                is_down = time.monotonic() - answered_at > _OUTAGE_POLL_SECONDS
                await waiter.wait(min(silence_left, _OUTAGE_POLL_SECONDS) if is_down else silence_left)
