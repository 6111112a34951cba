"""The clone store: the keys that clones have in Valkey or Redis, and what is read and written there.

```
feed:{clone_id}       stream; entry `n-0` is the clone (JSON) as of its n-th change, so the last entry is the clone
baseline:{clone_id}   the baseline (JSON); gone as soon as the clone is final
request:{request_id}  hash: the clone that this request made, and the digest of its body
lane:{student_id}     list: the student's clones that are not final; the first may run, the second waits behind it
requests:{student_id} set: the request ids of the student's clones
clones, clones:{student_id}   sorted sets: clone ids by their number in the order of acceptance
open                  sorted set: the clones that are not final by their place: the number less their head start
queued                sorted set: those of them that may be claimed now, by the same place
leases                sorted set: those that run by the time at which their lease expires, milliseconds since 1970; and
                      those that were put off by the time at which they may be claimed
tokens                hash: the clones that run, each with the token of its lease
sizes                 hash: responses of every clone that is not final
students              sorted set: students by the time at which their latest clone was accepted
counter, lease_counter, pace  the last number and the last token given; seconds a response takes
housekeeping          there while one server has the turn to keep house
```

All keys of a tenant share one hash tag, so the scripts also run on a cluster. Knows nothing of what the JSON holds.
"""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import cast

from redis.asyncio import Redis

from cloning_server.clones import scripts
from cloning_server.clones.records import Backlog, Claimed, Erased, NewChange, NewClone, Outcome
from cloning_server.clones.redis import answered
from mesh.adapters.ref import DEFAULT_TENANT


class CloneStore:
    """One tenant's keys. Every method raises `CloneStoreUnavailable` while the store does not answer."""

    def __init__(self, redis: Redis, *, tenant: str = DEFAULT_TENANT) -> None:
        self._redis = redis
        self._prefix = f"{{aivo:{tenant}}}:"
        self._start = redis.register_script(scripts.START)
        self._claim = redis.register_script(scripts.CLAIM)
        self._renew = redis.register_script(scripts.RENEW)
        self._change = redis.register_script(scripts.CHANGE)
        self._erase = redis.register_script(scripts.ERASE)

    @property
    def channel(self) -> str:
        """Where the id of every clone that changed is published."""
        return self._key("changes")

    async def start(self, new: NewClone, *, queue_limit: int) -> tuple[Outcome, str]:
        """Writes a clone if nothing stands in its way; returns what happened and the id of the clone it is about."""
        student_id, clone_id = new.student_id, new.clone_id
        keys = [
            self._key("request", new.request_id),
            self._key("lane", student_id),
            self._key("queued"),
            self._key("open"),
            self._key("clones"),
            self._key("clones", student_id),
            self._key("sizes"),
            self._key("tokens"),
            self._key("feed", clone_id),
            self._key("baseline", clone_id),
            self._key("counter"),
            self._key("students"),
            self._key("requests", student_id),
        ]
        facts: list[str | bytes | int] = [
            clone_id,
            new.digest,
            queue_limit,
            new.clone,
            new.baseline,
            new.responses,
            self.channel,
            new.head_start,
            int(new.may_wait),
            student_id,
            new.request_id,
        ]
        async with answered():
            outcome, clone_id = await self._start(keys=keys, args=facts)
        return outcome, clone_id

    async def claim(self, *, seconds: float) -> Claimed:
        """Leases the clone whose turn it is, for so long; one whose lease has expired comes first."""
        keys = [self._key("queued"), self._key("leases"), self._key("tokens"), self._key("lease_counter")]
        async with answered():
            clone_id, number = await self._claim(keys=keys, args=[_milliseconds(seconds)])
        if clone_id:
            return Claimed(clone_id=clone_id, token=number)
        return Claimed(due_seconds=None if number < 0 else number / 1000)

    async def renew(self, clone_id: str, *, token: int, seconds: float) -> bool:
        """Makes a lease last for so long from now on; returns False if it is somebody else's."""
        keys = [self._key("leases"), self._key("tokens")]
        async with answered():
            return bool(await self._renew(keys=keys, args=[clone_id, token, _milliseconds(seconds)]))

    async def change(self, change: NewChange) -> bool:
        """Writes a clone's next change; returns False if it is not the next, or not the writer's to write.

        Again is the same as once.
        """
        clone_id = change.clone_id
        keys = [
            self._key("feed", clone_id),
            self._key("queued"),
            self._key("leases"),
            self._key("tokens"),
            self._key("open"),
            self._key("lane", change.student_id),
            self._key("baseline", clone_id),
            self._key("sizes"),
        ]
        facts: list[str | bytes | int] = [
            clone_id,
            change.sequence,
            change.clone,
            change.effect,
            "" if change.token is None else change.token,
            _milliseconds(change.delay_seconds),
            self.channel,
        ]
        async with answered():
            return bool(await self._change(keys=keys, args=facts))

    async def read_request(self, request_id: str) -> tuple[str, str] | None:
        """Returns the id of the clone that a request made and the digest of its body; None if it made none."""
        async with answered():
            found = await self._redis.hmget(self._key("request", request_id), ["clone_id", "digest"])
        clone_id, digest = cast("list[str | None]", found)
        return None if clone_id is None or digest is None else (clone_id, digest)

    async def read_latest(self, clone_ids: Sequence[str]) -> list[str]:
        """Returns each clone as it is now; those that are not there are left out."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for clone_id in clone_ids:
                pipe.xrevrange(self._key("feed", clone_id), count=1)
            async with answered():
                feeds = await pipe.execute()
        return [entry[1]["clone"] for feed in feeds for entry in feed]

    async def read_changes(self, clone_id: str, *, after: int, limit: int | None = None) -> list[str]:
        """Returns the clone as of each change after that one, in order."""
        async with answered():
            entries = await self._redis.xrange(self._key("feed", clone_id), min=f"{after + 1}-0", count=limit)
        return [fields["clone"] for _, fields in cast("list[tuple[str, dict[str, str]]]", entries)]

    async def read_baseline(self, clone_id: str) -> str | None:
        """Returns the baseline, or None once the clone is final."""
        async with answered():
            return cast("str | None", await self._redis.get(self._key("baseline", clone_id)))

    async def list_numbers(self, student_id: str, *, below: int | None, limit: int) -> list[tuple[str, int]]:
        """Returns ids and numbers, newest first, of one student's clones, or of all if the id is empty."""
        newest = "+inf" if below is None else f"({below}"
        async with answered():
            found = await self._redis.zrevrangebyscore(
                self._key("clones", student_id), newest, "-inf", start=0, num=limit, withscores=True
            )
        return [(clone_id, int(number)) for clone_id, number in cast("list[tuple[str, float]]", found)]

    async def read_backlog(self) -> Backlog:
        """Returns what estimates are made of."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrange(self._key("open"), 0, -1, withscores=True)
            pipe.hgetall(self._key("sizes"))
            pipe.hkeys(self._key("tokens"))
            pipe.mget(self._key("counter"), self._key("pace"))
            async with answered():
                places, sizes, running, (counter, pace) = await pipe.execute()
        return Backlog(
            places=dict(places),
            sizes={clone_id: int(size) for clone_id, size in sizes.items()},
            running=frozenset(running),
            next_number=int(counter or 0) + 1,
            pace=None if pace is None else float(pace),
        )

    async def write_pace(self, pace: float) -> None:
        """Keeps the seconds that a response takes."""
        async with answered():
            await self._redis.set(self._key("pace"), pace)

    async def count(self) -> tuple[int, int]:
        """Counts the clones that wait and those that run."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zcard(self._key("open"))
            pipe.hlen(self._key("tokens"))
            async with answered():
                unfinished, running = await pipe.execute()
        return unfinished - running, running

    async def read_lane(self, student_id: str) -> list[str]:
        """Returns the ids of the student's clones that are not final, in the order of their turns."""
        async with answered():
            return cast("list[str]", await self._redis.lrange(self._key("lane", student_id), 0, -1))

    async def erase(self, student_id: str) -> Erased | None:
        """Removes all that is kept of a student; None, and removes nothing, if there is a clone that is not final."""
        own, requests = self._key("clones", student_id), self._key("requests", student_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrange(own, 0, -1)
            pipe.smembers(requests)
            async with answered():
                clone_ids, request_ids = await pipe.execute()
        keys = [self._key("clones"), own, requests, self._key("lane", student_id), self._key("students")]
        keys += [self._key(name, clone_id) for clone_id in clone_ids for name in ("feed", "baseline")]
        keys += [self._key("request", request_id) for request_id in request_ids]
        async with answered():
            removed = await self._erase(keys=keys, args=[student_id, self.channel, len(request_ids), *clone_ids])
        return None if removed < 0 else Erased(clones=len(clone_ids), request_ids=len(request_ids))

    async def list_idle_students(self, *, before: datetime, limit: int) -> list[str]:
        """Returns students whose latest clone was accepted before this time, longest ago first."""
        latest = f"({before.timestamp() * 1000:.0f}"
        async with answered():
            found = await self._redis.zrangebyscore(self._key("students"), "-inf", latest, start=0, num=limit)
        return cast("list[str]", found)

    async def take_turn(self, *, seconds: float) -> bool:
        """Whether the caller is the first to ask for so long."""
        async with answered():
            return bool(await self._redis.set(self._key("housekeeping"), "1", nx=True, px=_milliseconds(seconds)))

    def _key(self, name: str, of: str = "") -> str:
        return f"{self._prefix}{name}:{of}" if of else f"{self._prefix}{name}"


def _milliseconds(seconds: float) -> int:
    # Rounded up: a short time is no time at all otherwise.
    return math.ceil(seconds * 1000)
