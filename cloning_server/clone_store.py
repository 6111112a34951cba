"""The clone store: the keys that clones have in Valkey or Redis, and what is read and written there.

```
feed:{clone_id}       stream; entry `n-0` is the clone (JSON) as of its n-th change, so the last entry is the clone
baseline:{clone_id}   the baseline (JSON); gone as soon as the clone is final
request:{request_id}  hash: the clone that this request made, and the digest of its body
active:{student_id}   the student's one clone that is not final
clones, clones:{student_id}   sorted sets: clone ids by their number in the order of acceptance
queued                sorted set: the clones that wait, by the same number
claims                hash: the clones that run, each with the name of the claim by which it was taken
sizes                 hash: responses of every clone that is not final
counter, pace         the last number given; seconds a response takes
```

All keys of a tenant share one hash tag, so the scripts also run on a cluster. Knows nothing of what the JSON holds.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from cloning_server import scripts
from mesh.adapters.ref import DEFAULT_TENANT
from mesh.errors import CloneStoreUnavailable

# One server reads and writes little at a time; more connections would only queue in the store instead of here.
MAX_CONNECTIONS = 32
# A store that is there answers within milliseconds, or seconds where its disk is busy and every write is flushed; one
# that is not is told as such rather than waited for.
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 5.0
# Enough for a connection of the pool that a restart of the store has cut; an outage is for the caller to wait out.
RETRIES = 2

# What passes by itself: no answer, a replica during a failover, no memory left, a cluster that changes shape.
_TRANSIENT = (
    TimeoutError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
)

Outcome = Literal["made", "same", "reused", "running", "full"]
Effect = Literal["waits", "runs", "ends"]


def open_redis(url: str) -> Redis:
    """Returns a client that connects when it is first used; close it with `aclose`."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        # Whoever calls sets a timeout around the whole. The client's own goes through `asyncio.wait_for`, which up to
        # Python 3.11 loses a cancellation that comes as it ends: a worker that was told to stop would go on.
        socket_timeout=None,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), RETRIES),
        decode_responses=True,
    )
    return Redis.from_pool(pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClone:
    """What is written when a clone is accepted: `clone` and `baseline` as JSON, the digest of the request's body."""

    clone_id: str
    student_id: str
    request_id: str
    digest: str
    clone: bytes
    baseline: bytes
    responses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """The responses of each clone that is not final, and seconds per response if any were measured."""

    responses: tuple[int, ...]
    pace: float | None


class CloneStore:
    """One tenant's keys. Every method raises `CloneStoreUnavailable` while the store does not answer."""

    def __init__(self, redis: Redis, *, tenant: str = DEFAULT_TENANT) -> None:
        self._redis = redis
        self._prefix = f"{{aivo:{tenant}}}:"
        self._start = redis.register_script(scripts.START)
        self._claim = redis.register_script(scripts.CLAIM)
        self._change = redis.register_script(scripts.CHANGE)

    @property
    def channel(self) -> str:
        """Where the id of every clone that changed is published."""
        return self._key("changes")

    async def start(self, new: NewClone, *, queue_limit: int) -> tuple[Outcome, str]:
        """Writes a clone if nothing stands in its way; returns what happened and the id of the clone it is about."""
        keys = [
            self._key("request", new.request_id),
            self._key("active", new.student_id),
            self._key("queued"),
            self._key("clones"),
            self._key("clones", new.student_id),
            self._key("sizes"),
            self._key("feed", new.clone_id),
            self._key("baseline", new.clone_id),
            self._key("counter"),
        ]
        digest = new.digest if new.request_id else ""
        facts: list[str | bytes | int] = [
            new.clone_id,
            digest,
            queue_limit,
            new.clone,
            new.baseline,
            new.responses,
            self.channel,
        ]
        async with _answered():
            outcome, clone_id = await self._start(keys=keys, args=facts)
        return outcome, clone_id

    async def claim(self) -> str | None:
        """Takes the clone that waits longest; returns its id, or None if none waits."""
        queued, claims, claim = self._key("queued"), self._key("claims"), secrets.token_hex(8)
        async with _answered():
            while waiting := cast("list[str]", await self._redis.zrange(queued, 0, 0)):
                if await self._claim(keys=[queued, claims], args=[waiting[0], claim]):
                    return waiting[0]
        return None

    async def claimed(self) -> list[str]:
        """Returns the ids of the clones that somebody runs, or ran when it ended."""
        async with _answered():
            return cast("list[str]", await self._redis.hkeys(self._key("claims")))

    async def change(self, clone_id: str, student_id: str, *, sequence: int, clone: bytes, effect: Effect) -> bool:
        """Writes a clone's next change; returns False if that number is not the next one. Again is the same as once."""
        keys = [
            self._key("feed", clone_id),
            self._key("queued"),
            self._key("claims"),
            self._key("clones"),
            self._key("active", student_id),
            self._key("baseline", clone_id),
            self._key("sizes"),
        ]
        async with _answered():
            return bool(await self._change(keys=keys, args=[clone_id, sequence, clone, effect, self.channel]))

    async def read_latest(self, clone_ids: Sequence[str]) -> list[str]:
        """Returns each clone as it is now; those that are not there are left out."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for clone_id in clone_ids:
                pipe.xrevrange(self._key("feed", clone_id), count=1)
            async with _answered():
                feeds = await pipe.execute()
        return [entry[1]["clone"] for feed in feeds for entry in feed]

    async def read_changes(self, clone_id: str, *, after: int, limit: int | None = None) -> list[str]:
        """Returns the clone as of each change after that one, in order."""
        async with _answered():
            entries = await self._redis.xrange(self._key("feed", clone_id), min=f"{after + 1}-0", count=limit)
        return [fields["clone"] for _, fields in cast("list[tuple[str, dict[str, str]]]", entries)]

    async def read_baseline(self, clone_id: str) -> str | None:
        """Returns the baseline, or None once the clone is final."""
        async with _answered():
            return cast("str | None", await self._redis.get(self._key("baseline", clone_id)))

    async def list_numbers(self, student_id: str, *, below: int | None, limit: int) -> list[tuple[str, int]]:
        """Returns ids and numbers, newest first, of one student's clones, or of all if the id is empty."""
        newest = "+inf" if below is None else f"({below}"
        async with _answered():
            found = await self._redis.zrevrangebyscore(
                self._key("clones", student_id), newest, "-inf", start=0, num=limit, withscores=True
            )
        return [(clone_id, int(number)) for clone_id, number in cast("list[tuple[str, float]]", found)]

    async def read_backlog(self) -> Backlog:
        """Returns what estimates are made of."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hvals(self._key("sizes"))
            pipe.get(self._key("pace"))
            async with _answered():
                sizes, pace = await pipe.execute()
        return Backlog(responses=tuple(map(int, sizes)), pace=None if pace is None else float(pace))

    async def write_pace(self, pace: float) -> None:
        """Keeps the seconds that a response takes."""
        async with _answered():
            await self._redis.set(self._key("pace"), pace)

    async def count(self) -> tuple[int, int]:
        """Counts the clones that wait and those that run."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(self._key("queued"))
            pipe.hlen(self._key("claims"))
            async with _answered():
                queued, running = await pipe.execute()
        return queued, running

    def _key(self, name: str, of: str = "") -> str:
        return f"{self._prefix}{name}:{of}" if of else f"{self._prefix}{name}"


@contextlib.asynccontextmanager
async def _answered() -> AsyncIterator[None]:
    """Wants an answer within `ANSWER_SECONDS`, and tells all that passes by itself as `CloneStoreUnavailable`."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except _TRANSIENT as error:
        raise CloneStoreUnavailable(f"the clone store does not answer ({type(error).__name__})") from error
