"""Delivers new alerts to a webhook, and those that got a new category, for adults who watch no stream.

Each is a POST with the alert as JSON. The header `X-Aivo-Signature` is `t=…,v1=…`: the time in seconds since 1970, and
the HMAC-SHA256 (RFC 2104) of that time, a full stop and the body, in hex, under the secret of the settings. Any answer
of 200 to 299 ends the delivery; otherwise it is tried again, with pauses that double, for about a day. An alert may
arrive twice, never in vain: what is not delivered stays in the store, and any brain takes it up.
"""

import asyncio
import hmac
import time
from collections.abc import Callable
from hashlib import sha256

import httpx

from mesh.alerts.alert import Alert
from mesh.alerts.alert_store import AlertStore
from mesh.background import BackgroundTask
from mesh.errors import AlertCorrupt, AlertNotFound, AlertStoreUnavailable
from mesh.log import get_logger
from mesh.valkey.wakeups import Wakeups

SIGNATURE_HEADER = "X-Aivo-Signature"
_ANSWER_SECONDS = 10.0
# Longer than all deliveries of one claim may take.
_LEASE_SECONDS = 60.0
_DELIVERIES_AT_ONCE = 4
# Pauses double from the first to the longest; twenty attempts take about a day.
FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 2 * 3600.0
_MOST_ATTEMPTS = 24
# Retries become due without a notice.
_POLL_SECONDS = 1.0

_log = get_logger(__name__)


def sign(body: bytes, secret: str, *, now: int) -> str:
    """Returns the signature of a body at a time in seconds since 1970."""
    digest = hmac.new(secret.encode(), f"{now}.".encode() + body, sha256).hexdigest()
    return f"t={now},v1={digest}"


class Webhook(BackgroundTask):
    """Delivers alerts while it is entered.

    Args:
        store: Holds the alerts and what is due.
        wakeups: Say when to look; of `AlertStore.channel`.
        url: Where to send them.
        secret: Signs them.
        encode: Makes an alert's JSON.
        observe: Is called with `delivered`, `failed`, `given_up` or `unreadable` after each attempt.
    """

    def __init__(
        self,
        store: AlertStore,
        *,
        wakeups: Wakeups,
        url: str,
        secret: str,
        encode: Callable[[Alert], bytes],
        observe: Callable[[str], None],
    ) -> None:
        self._store = store
        self._wakeups = wakeups
        self._url = url
        self._secret = secret
        self._encode = encode
        self._observe = observe

    async def _run(self) -> None:
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS) as client:
            with self._wakeups.waiter() as waiter:
                while True:
                    try:
                        claimed = await self._store.claim_deliveries(limit=_DELIVERIES_AT_ONCE, seconds=_LEASE_SECONDS)
                        await asyncio.gather(
                            *(self._deliver(client, alert_id, attempt) for alert_id, attempt in claimed)
                        )
                    except AlertStoreUnavailable:
                        claimed = []
                    if not claimed:
                        await waiter.wait(_POLL_SECONDS)

    async def _deliver(self, client: httpx.AsyncClient, alert_id: str, attempt: int) -> None:
        try:
            body = self._encode(await self._store.find(alert_id))
        except AlertNotFound:
            # It was erased with its student.
            return
        except AlertCorrupt:
            await self._store.end_delivery(alert_id, attempt=attempt)
            self._observe("unreadable")
            _log.error("webhook_alert_unreadable", alert_id=alert_id)
            return
        signature = sign(body, self._secret, now=int(time.time()))
        headers = {"content-type": "application/json", SIGNATURE_HEADER: signature}
        try:
            answer = await client.post(self._url, content=body, headers=headers)
            fault = "" if answer.is_success else f"HTTP status {answer.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            fault = type(error).__name__
        if not fault:
            await self._store.end_delivery(alert_id, attempt=attempt)
            self._observe("delivered")
        elif attempt >= _MOST_ATTEMPTS:
            await self._store.end_delivery(alert_id, attempt=attempt)
            self._observe("given_up")
            _log.error("webhook_given_up", alert_id=alert_id, reason=fault)
        else:
            pause_seconds = min(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1), _LONGEST_PAUSE_SECONDS)
            await self._store.delay_delivery(alert_id, seconds=pause_seconds)
            self._observe("failed")
            _log.warning("webhook_failed", alert_id=alert_id, attempt=attempt, reason=fault)
