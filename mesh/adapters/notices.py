"""Notices tell every brain at once that a student's pointer has moved, or that a student was deleted.

They travel through Redis or Valkey, on one channel per tenant. A brain that receives one reads the pointer from the
store again. So a lost notice costs only time, and nobody waits for a Redis that is down: a brain then learns of the
change when what it has read of the store expires.

A brain answers the notice of a deletion once it has forgotten the student, in a list that expires by itself. So who
deletes a student knows how many brains have heard of it, and how many have forgotten.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated
from uuid import uuid4

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
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
# Brains forget a student within milliseconds; one that takes longer than this is not counted.
FORGET_SECONDS = 2.0
POLL_SECONDS = 0.02
# Answers that came too late to be counted are removed after this.
ANSWERS_STAY_SECONDS = 60
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


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class DeletionNotice:
    """The content of a notice that a student was deleted.

    Attributes:
        deleted_student_id: The student.
        deletion_id: Names the list for the answers.

    Raises:
        InvalidField: The student's id is malformed.
    """

    deleted_student_id: str
    deletion_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

    def __post_init__(self) -> None:
        validate_student_id(self.deleted_student_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class InformedBrains:
    """Who has heard of a deletion.

    Attributes:
        listening: Number of brains that listened.
        confirmed: How many of them have forgotten the student in time.
        adapters: How many of the student's adapters those had in memory.
    """

    listening: int
    confirmed: int
    adapters: int


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


async def announce_deletion(redis: Redis, student_id: str, *, tenant: str) -> InformedBrains | None:
    """Tells all listeners that a student was deleted, and waits until they have forgotten the student, or for 2 s.

    Never raises.

    Returns:
        Who has heard of it; None if the notice could not be sent, which is logged.
    """
    notice = DeletionNotice(deleted_student_id=student_id, deletion_id=uuid4().hex)
    try:
        async with asyncio.timeout(ANNOUNCE_SECONDS):
            listening: int = await redis.publish(channel_of(tenant), _JSON.dump_json(notice))
    except (RedisError, OSError) as error:
        _log.warning("deletion_notice_unsent", error=type(error).__name__)
        return None
    answers: list[bytes | str] = []
    with suppress(RedisError, OSError):
        async with asyncio.timeout(FORGET_SECONDS):
            while len(answers) < listening:
                await asyncio.sleep(POLL_SECONDS)
                answers = await redis.lrange(_answers_key(tenant, notice.deletion_id), 0, -1)
    return InformedBrains(listening=listening, confirmed=len(answers), adapters=sum(map(int, answers)))


class Listener(BackgroundTask):
    """Receives a tenant's notices while it is entered.

    Args:
        url: URL of Redis or Valkey. Entering starts to connect, and does not wait for the connection.
        tenant: The tenant whose notices are received.
        on_moved: Called with the student of each notice that a pointer has moved.
        on_deleted: Called with each student who was deleted; returns how many adapters it drops.
        on_gap: Called each time that listening begins, because notices may have been missed before.
        on_heard: Called each time that Redis is heard, also in silence: no notice was missed until now.
    """

    def __init__(
        self,
        url: str,
        *,
        tenant: str,
        on_moved: Callable[[str], None],
        on_deleted: Callable[[str], int],
        on_gap: Callable[[], None],
        on_heard: Callable[[], None],
    ) -> None:
        # This class reconnects itself, because it must know of every gap.
        self._redis = Redis.from_url(
            url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._tenant = tenant
        self._on_moved = on_moved
        self._on_deleted = on_deleted
        self._on_gap = on_gap
        self._on_heard = on_heard
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
                    await self._listen(pubsub)
            except (RedisError, OSError) as error:
                # Logged once per outage, not once per attempt.
                if not self._lost:
                    _log.warning("pointer_notices_lost", error=type(error).__name__)
                self._lost = True
            await asyncio.sleep(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)

    async def _listen(self, pubsub: PubSub) -> None:
        channel = channel_of(self._tenant)
        events = subscribe(pubsub, channel, silence_seconds=SILENCE_SECONDS, on_alive=self._on_heard)
        async for data in events:
            if data is None:
                self._begin()
            else:
                await self._take(data)

    def _begin(self) -> None:
        self._pause_seconds = FIRST_PAUSE_SECONDS
        if self._lost:
            _log.info("pointer_notices_back")
        self._lost = False
        self._on_gap()

    async def _take(self, data: bytes) -> None:
        try:
            notice = _JSON.validate_json(data)
        except (ValidationError, InvalidField):
            # Logged once, because one sender may send many; without its content, which is unknown and may be private.
            if not self._saw_malformed:
                _log.warning("pointer_notice_malformed")
            self._saw_malformed = True
        else:
            if isinstance(notice, DeletionNotice):
                await self._forget(notice)
            else:
                self._on_moved(notice.student_id)

    async def _forget(self, notice: DeletionNotice) -> None:
        """Forgets the student, and says so. An answer that can't be sent is logged: the student is forgotten anyway."""
        adapters = self._on_deleted(notice.deleted_student_id)
        key = _answers_key(self._tenant, notice.deletion_id)
        try:
            async with asyncio.timeout(ANNOUNCE_SECONDS), self._redis.pipeline(transaction=True) as pipe:
                pipe.rpush(key, adapters)
                pipe.expire(key, ANSWERS_STAY_SECONDS)
                await pipe.execute()
        except (RedisError, OSError) as error:
            _log.warning("deletion_answer_unsent", error=type(error).__name__)


def _answers_key(tenant: str, deletion_id: str) -> str:
    return f"aivo:forgotten:{tenant}:{deletion_id}"


_JSON: TypeAdapter[Notice | DeletionNotice] = TypeAdapter(Notice | DeletionNotice)
