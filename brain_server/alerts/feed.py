"""Serves watchers of alerts from any number on. Knows nothing of gRPC."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from mesh.alerts.alert import Alert
from mesh.alerts.alert_store import AlertStore
from mesh.errors import InvalidField, Violation
from mesh.valkey.wakeups import Wakeups
from mesh.valkey.watch import Outage, Silence

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
        heartbeat_seconds: Longest silence; see `Silence`.
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
            AlertStoreUnavailable: The store does not answer, once watching for longer than an `Outage` tolerates.
        """
        with self._wakeups.waiter() as waiter:
            latest = await self._store.latest_sequence()
            if after_sequence is not None and after_sequence > latest:
                message = f"must be at most {latest}, the number of the latest change"
                raise InvalidField([Violation("after_sequence", message)])
            last_sequence = after_sequence or 0
            outage, silence = Outage(), Silence(longest_seconds=self._heartbeat_seconds)
            while True:
                alerts: list[Alert] = []
                with outage.tolerated():
                    alerts = await self._store.read_after(last_sequence, student_id=student_id, limit=_ALERTS_AT_ONCE)
                for alert in alerts:
                    is_old = after_sequence is None and alert.sequence <= latest
                    last_sequence = alert.sequence
                    if not (is_old and alert.acknowledge_time):
                        yield AlertEvent(sequence=alert.sequence, alert=alert)
                        silence.begin()
                if len(alerts) == _ALERTS_AT_ONCE:
                    continue
                if silence.seconds_left <= 0:
                    yield AlertEvent(sequence=last_sequence, alert=None)
                    silence.begin()
                await waiter.wait(min(silence.seconds_left, outage.poll_seconds))
