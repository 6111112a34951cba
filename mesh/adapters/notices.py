"""Notices tell every brain at once that a student's pointer has moved.

They travel through Redis or Valkey, on one channel per tenant. A brain that receives one reads the pointer from the
store again. So a lost notice costs only time, and nobody waits for a Redis that is down: a brain then learns of a new
version when its cached pointer expires.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from mesh.adapters.manifest import Digest
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import validate_student_id
from mesh.background import BackgroundTask
from mesh.errors import InvalidField
from mesh.log import get_logger
from mesh.subscription import subscribe

# A publisher does not wait longer for Redis to accept a notice.
ANNOUNCE_SECONDS = 1.0
CONNECT_SECONDS = 1.0
# After this much silence the connection is probed, and the probe may take as long.
SILENCE_SECONDS = 5.0
# Pauses between attempts to connect; they double from the first to the longest.
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Notice:
    """The content of a notice: the active version of a student, and the identity of its weights.

    Raises:
        InvalidField: The student's id is malformed.
    """

    student_id: str
    version: Annotated[int, Field(ge=1)]
    sha256: Digest

    def __post_init__(self) -> None:
        validate_student_id(self.student_id)


def channel_of(tenant: str) -> str:
    """Returns the channel of a tenant's notices."""
    return f"aivo:active:{tenant}"


async def announce(redis: Redis, active: ActiveAdapter) -> None:
    """Tells all listeners that this version is active now. Never raises: it logs a notice that it cannot send."""
    notice = Notice(student_id=active.ref.student_id, version=active.ref.version, sha256=active.sha256)
    try:
        async with asyncio.timeout(ANNOUNCE_SECONDS):
            await redis.publish(channel_of(active.ref.tenant), _JSON.dump_json(notice))
    except (RedisError, OSError) as error:
        _log.warning("pointer_notice_unsent", ref=str(active.ref), error=type(error).__name__)


class Listener(BackgroundTask):
    """Receives a tenant's notices while it is entered.

    Args:
        url: URL of Redis or Valkey. Entering starts to connect, and does not wait for the connection.
        tenant: The tenant whose notices are received.
        on_moved: Called with the student of each notice.
        on_gap: Called each time that listening begins, because notices may have been missed before.
    """

    def __init__(self, url: str, *, tenant: str, on_moved: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        # This class reconnects itself, because it must know of every gap.
        self._redis = Redis.from_url(
            url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._channel = channel_of(tenant)
        self._on_moved = on_moved
        self._on_gap = on_gap
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._lost = False
        self._saw_malformed = False

    async def __aexit__(self, *_: object) -> None:
        try:
            await super().__aexit__()
        finally:
            await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    async for data in subscribe(pubsub, self._channel, silence_seconds=SILENCE_SECONDS):
                        if data is None:
                            self._begin()
                        else:
                            self._take(data)
            except (RedisError, OSError) as error:
                # Logged once per outage, not once per attempt.
                if not self._lost:
                    _log.warning("pointer_notices_lost", error=type(error).__name__)
                self._lost = True
            await asyncio.sleep(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)

    def _begin(self) -> None:
        self._pause_seconds = FIRST_PAUSE_SECONDS
        if self._lost:
            _log.info("pointer_notices_back")
        self._lost = False
        self._on_gap()

    def _take(self, data: bytes) -> None:
        try:
            notice = _JSON.validate_json(data)
        except (ValidationError, InvalidField):
            # Logged once, because one sender may send many; without its content, which is unknown and may be private.
            if not self._saw_malformed:
                _log.warning("pointer_notice_malformed")
            self._saw_malformed = True
        else:
            self._on_moved(notice.student_id)


_JSON = TypeAdapter(Notice)
