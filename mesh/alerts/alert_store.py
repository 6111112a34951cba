"""The alert store: the keys in Valkey or Redis that hold the alerts, and the operations on them.

```
alert:{alert_id}            hash: the alert; see `Alert.of`
alerts                      sorted set: alert ids by the number of their latest change
alerts:{student_id}         the same for one student
open_alert:{student_id}     string: the alert in which further findings count; expires with the window
alert_sequence              string: the number of the latest change
alert_deliveries            sorted set: alerts that the webhook has not received, by the time of the next attempt, in
                            milliseconds since 1970
alert_erasure:{random id}   string: exists for a moment after an erasure, so that a repeated call answers as the first
alert_write_check           string: written to find out whether Redis takes writes
```

An alert's place in the sorted sets moves with each change. Whoever reads what comes after a number therefore gets every
alert that changed since, once and in its latest state. With a retention time, alerts expire by themselves.

All keys of a tenant share one hash tag, so that the scripts also run on a cluster.
"""

import secrets
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import cast

from redis.asyncio import Redis

from mesh.alerts.alert import Alert, NewFinding
from mesh.errors import AlertCorrupt, AlertNotFound, AlertStoreUnavailable
from mesh.log import get_logger
from mesh.valkey.connection import ANSWER_STAYS_SECONDS, answers_in_time
from mesh.valkey.script import LuaScript

# Findings of one student within this time are one alert: an adult who looks after a child needs one call, not thirty.
WINDOW = timedelta(minutes=5)

_SCRIPTS = "mesh.alerts.scripts"

_log = get_logger(__name__)


class AlertStore:
    """One tenant's alerts.

    Every method raises `AlertStoreUnavailable` while Redis does not answer, or refuses because, say, its disk is full.

    Args:
        redis: Holds them.
        tenant: Whose they are.
        retention: How long an alert stays after its last finding; None is for ever.
        window: How long findings count in the same alert.
    """

    def __init__(
        self, redis: Redis, *, tenant: str, retention: timedelta | None = None, window: timedelta = WINDOW
    ) -> None:
        self._redis = redis
        self._prefix = f"{{aivo:{tenant}}}:"
        self._retention = retention
        self._window = window
        self._raise = LuaScript(redis, "raise", package=_SCRIPTS)
        self._acknowledge = LuaScript(redis, "acknowledge", package=_SCRIPTS)
        self._erase = LuaScript(redis, "erase", package=_SCRIPTS)
        self._claim = LuaScript(redis, "claim", package=_SCRIPTS)
        self._end_delivery = LuaScript(redis, "end_delivery", package=_SCRIPTS)

    @property
    def channel(self) -> str:
        """The channel on which Redis publishes the id of every alert that changes."""
        return f"{self._prefix}alert_changes"

    async def check(self) -> None:
        """Returns if Redis takes writes; a Redis that only answers can't keep an alert."""
        async with _answers_in_time():
            await self._redis.set(f"{self._prefix}alert_write_check", "1")

    async def record(self, finding: NewFinding, *, with_webhook: bool = False) -> str:
        """Counts a finding, or raises an alert; returns the alert's id. A repeated call has no further effect.

        Args:
            finding: What was found.
            with_webhook: Whether a new alert, or one with a new category, is to be delivered to the webhook.
        """
        probabilities = [part for name, value in finding.probabilities.items() for part in (name, f"{value:.6f}")]
        async with _answers_in_time():
            answer = await self._raise(
                keys={
                    "sequence": f"{self._prefix}alert_sequence",
                    "open": f"{self._prefix}open_alert:{finding.student_id}",
                    "alerts": f"{self._prefix}alerts",
                    "student_alerts": f"{self._prefix}alerts:{finding.student_id}",
                    "due": f"{self._prefix}alert_deliveries",
                },
                args={
                    "alert_id": f"alert_{uuid.uuid4().hex[:16]}",
                    "finding_id": finding.finding_id,
                    "alert_prefix": f"{self._prefix}alert:",
                    "student_id": finding.student_id,
                    "action": finding.action,
                    "text": finding.text,
                    "guard": finding.guard,
                    "request_id": finding.request_id,
                    "words": finding.words,
                    "window_milliseconds": _milliseconds(self._window),
                    "retention_milliseconds": 0 if self._retention is None else _milliseconds(self._retention),
                    "with_webhook": int(with_webhook),
                    "channel": self.channel,
                    "probabilities": probabilities,
                },
            )
        return cast("str", answer)

    async def find(self, alert_id: str) -> Alert:
        """Returns an alert.

        Raises:
            AlertNotFound: There is none with this id.
            AlertCorrupt: What is stored of it can't be read.
        """
        (fields,) = await self._read_hashes([alert_id])
        if not fields:
            raise AlertNotFound(alert_id=alert_id)
        return _alert_of(alert_id, fields)

    async def acknowledge(self, alert_id: str, *, acknowledged_by: str) -> Alert:
        """Returns the alert after an adult took care of it; one that was acknowledged before stays as it is.

        Raises:
            AlertNotFound: There is none with this id.
        """
        async with _answers_in_time():
            answer = await self._acknowledge(
                keys={
                    "sequence": f"{self._prefix}alert_sequence",
                    "alert": f"{self._prefix}alert:{alert_id}",
                    "alerts": f"{self._prefix}alerts",
                },
                args={
                    "alert_id": alert_id,
                    "acknowledged_by": acknowledged_by,
                    "student_alerts_prefix": f"{self._prefix}alerts:",
                    "open_prefix": f"{self._prefix}open_alert:",
                    "channel": self.channel,
                },
            )
        if not answer:
            raise AlertNotFound(alert_id=alert_id)
        return await self.find(alert_id)

    async def read_after(self, sequence: int, *, student_id: str = "", limit: int) -> list[Alert]:
        """Returns alerts that changed after this number, in the order of these changes; `""` is every student.

        Fewer than `limit` are all there are: those that can't be read make room for later ones.
        """
        alerts: list[Alert] = []
        while True:
            async with _answers_in_time():
                entries = await self._redis.zrangebyscore(
                    self._listed(student_id), f"({sequence}", "+inf", start=0, num=limit, withscores=True
                )
            numbers = _numbers_in(entries)
            # One that changed between the two reads comes with its new number, after others that are not read yet.
            alerts += [alert for alert in await self._read(list(numbers)) if alert.sequence == numbers[alert.alert_id]]
            if len(alerts) >= limit or len(numbers) < limit:
                return alerts[:limit]
            sequence = max(numbers.values())

    async def list_latest(self, *, student_id: str = "", below: int | None, limit: int) -> list[Alert]:
        """Returns alerts, the latest change first, from below a number on; an empty id stands for all students.

        Fewer than `limit` are all there are: those that can't be read make room for older ones.
        """
        alerts: dict[str, Alert] = {}
        while True:
            newest = "+inf" if below is None else f"({below}"
            async with _answers_in_time():
                entries = await self._redis.zrevrangebyscore(
                    self._listed(student_id), newest, "-inf", start=0, num=limit, withscores=True
                )
            numbers = _numbers_in(entries)
            alerts |= {alert.alert_id: alert for alert in await self._read(list(numbers))}
            if len(alerts) >= limit or len(numbers) < limit:
                return sorted(alerts.values(), key=lambda alert: alert.sequence, reverse=True)[:limit]
            below = min(numbers.values())

    async def latest_sequence(self) -> int:
        """Returns the number of the latest change; 0 if there was none."""
        async with _answers_in_time():
            return int(await self._redis.get(f"{self._prefix}alert_sequence") or 0)

    async def erase(self, student_id: str) -> int:
        """Removes all alerts of a student; returns how many there were."""
        async with _answers_in_time():
            answer = await self._erase(
                keys={
                    "alerts": f"{self._prefix}alerts",
                    "student_alerts": self._listed(student_id),
                    "open": f"{self._prefix}open_alert:{student_id}",
                    "due": f"{self._prefix}alert_deliveries",
                    "erasure": f"{self._prefix}alert_erasure:{secrets.token_hex(8)}",
                },
                args={"alert_prefix": f"{self._prefix}alert:", "stay_seconds": ANSWER_STAYS_SECONDS},
            )
        return cast("int", answer)

    async def claim_deliveries(self, *, limit: int, seconds: float) -> list[tuple[str, int]]:
        """Returns alerts that are due for the webhook, each with the number of the attempt.

        Nobody else gets them for so many seconds.
        """
        async with _answers_in_time():
            answer = await self._claim(
                keys={"due": f"{self._prefix}alert_deliveries"},
                args={
                    "alert_prefix": f"{self._prefix}alert:",
                    "limit": limit,
                    "lease_milliseconds": _milliseconds(timedelta(seconds=seconds)),
                },
            )
        parts = iter(cast("list[str | int]", answer))
        return [(str(alert_id), int(attempt)) for alert_id, attempt in zip(parts, parts, strict=True)]

    async def end_delivery(self, alert_id: str, *, attempt: int) -> None:
        """Says that the webhook has an alert, or never will; a category that was found since this attempt stays due."""
        async with _answers_in_time():
            await self._end_delivery(
                keys={"due": f"{self._prefix}alert_deliveries", "alert": f"{self._prefix}alert:{alert_id}"},
                args={"alert_id": alert_id, "attempt": attempt},
            )

    async def delay_delivery(self, alert_id: str, *, seconds: float) -> None:
        """Makes an alert due again after so many seconds, by the store's clock, unless it was erased."""
        async with _answers_in_time():
            now_seconds, microseconds = await self._redis.time()
            due = now_seconds * 1000 + microseconds // 1000 + _milliseconds(timedelta(seconds=seconds))
            await self._redis.zadd(f"{self._prefix}alert_deliveries", {alert_id: due}, xx=True)

    async def _read(self, alert_ids: Sequence[str]) -> list[Alert]:
        """Returns the alerts that exist; those that can't be read are left out, and logged."""
        return [
            alert
            for alert_id, fields in zip(alert_ids, await self._read_hashes(alert_ids), strict=True)
            if (alert := _readable(alert_id, fields))
        ]

    async def _read_hashes(self, alert_ids: Sequence[str]) -> list[dict[str, str]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for alert_id in alert_ids:
                pipe.hgetall(f"{self._prefix}alert:{alert_id}")
            async with _answers_in_time():
                return cast("list[dict[str, str]]", await pipe.execute())

    def _listed(self, student_id: str) -> str:
        return f"{self._prefix}alerts:{student_id}" if student_id else f"{self._prefix}alerts"


def _numbers_in(entries: object) -> dict[str, int]:
    """The numbers of the latest changes of alerts, by id, from what Redis answers."""
    return {alert_id: int(number) for alert_id, number in cast("list[tuple[str, float]]", entries)}


def _alert_of(alert_id: str, fields: Mapping[str, str]) -> Alert:
    try:
        return Alert.of(fields)
    except (KeyError, ValueError, OverflowError):
        # Not its cause: that may quote the record, which is about a student.
        raise AlertCorrupt(alert_id=alert_id) from None


def _readable(alert_id: str, fields: Mapping[str, str]) -> Alert | None:
    try:
        return _alert_of(alert_id, fields) if fields else None
    except AlertCorrupt:
        _log.error("alert_unreadable", alert_id=alert_id)
        return None


def _answers_in_time() -> AbstractAsyncContextManager[None]:
    return answers_in_time(AlertStoreUnavailable, "alert store")


def _milliseconds(duration: timedelta) -> int:
    return max(1, round(duration.total_seconds() * 1000))
