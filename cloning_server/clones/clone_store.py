"""The clone store: what accepts, queues, claims, changes and reads clones in Valkey or Redis.

Changes that must be atomic are Lua scripts; see `scripts`. Knows nothing of what the JSON holds. `layout` says which
keys there are, and `upkeep_store` removes what is in them.
"""

from collections.abc import Mapping, Sequence
from typing import cast

from redis.asyncio import Redis

from cloning_server.clones.layout import SCRIPTS, StoreKeys, answers_in_time, milliseconds
from cloning_server.clones.records import (
    Backlog,
    Claim,
    NewChange,
    NewClone,
    StartOutcome,
    StoredChange,
    StoredReading,
)
from mesh.adapters.ref import DEFAULT_TENANT
from mesh.valkey.script import LuaScript


class CloneStore:
    """One tenant's clones in Redis.

    Every method raises `CloneStoreUnavailable` while Redis does not answer, or refuses because, say, its disk is full.
    """

    def __init__(self, redis: Redis, *, tenant: str = DEFAULT_TENANT) -> None:
        self._redis = redis
        self._key = StoreKeys(tenant)
        self._start = LuaScript(redis, "start", package=SCRIPTS)
        self._claim = LuaScript(redis, "claim", package=SCRIPTS)
        self._renew = LuaScript(redis, "renew", package=SCRIPTS)
        self._change = LuaScript(redis, "change", package=SCRIPTS)
        self._read_script = LuaScript(redis, "read", package=SCRIPTS)

    @property
    def channel(self) -> str:
        """The channel on which Redis publishes the id of every clone that changes."""
        return self._key.channel

    async def check(self) -> None:
        """Returns if Redis takes writes; a Redis that only answers can't keep a clone."""
        async with answers_in_time():
            await self._redis.set(self._key("write_check"), "1")

    async def start(self, new: NewClone, *, queue_limit: int) -> tuple[StartOutcome, str]:
        """Writes a clone unless something stands in its way.

        Returns:
            What happened, and the id of the clone that it is about.
        """
        student_id, clone_id = new.student_id, new.clone_id
        async with answers_in_time():
            answer = await self._start(
                keys={
                    "request": self._key("request", new.request_id),
                    "lane": self._key("lane", student_id),
                    "queued": self._key("queued"),
                    "open": self._key("open"),
                    "clones": self._key("clones"),
                    "student_clones": self._key("clones", student_id),
                    "sizes": self._key("sizes"),
                    "tokens": self._key("tokens"),
                    "feed": self._key("feed", clone_id),
                    "baseline": self._key("baseline", clone_id),
                    "counter": self._key("counter"),
                    "change_counter": self._key("change_counter"),
                    "students": self._key("students"),
                    "due": self._key("due"),
                    "student_requests": self._key("requests", student_id),
                },
                args={
                    "clone_id": clone_id,
                    "digest": new.digest,
                    "queue_limit": queue_limit,
                    "clone": new.clone,
                    "baseline": new.baseline,
                    "size": new.responses,
                    "channel": self.channel,
                    "head_start": new.head_start,
                    "may_wait": int(new.may_wait),
                    "student_id": student_id,
                    "request_id": new.request_id,
                },
            )
        return cast("tuple[StartOutcome, str]", tuple(cast("list[str]", answer)))

    async def claim(self, *, seconds: float) -> Claim:
        """Leases the next clone for so many seconds. A clone whose lease has expired comes first."""
        async with answers_in_time():
            answer = await self._claim(
                keys={
                    "queued": self._key("queued"),
                    "leases": self._key("leases"),
                    "tokens": self._key("tokens"),
                    "lease_counter": self._key("lease_counter"),
                },
                args={"milliseconds": milliseconds(seconds)},
            )
        clone_id, number = cast("tuple[str, int]", answer)
        if clone_id:
            return Claim(clone_id=clone_id, token=number)
        return Claim(due_seconds=None if number < 0 else number / 1000)

    async def renew(self, clone_id: str, *, token: int, seconds: float) -> bool:
        """Makes a lease last for so many seconds from now on; returns False if another lease replaced it."""
        async with answers_in_time():
            answer = await self._renew(
                keys={"leases": self._key("leases"), "tokens": self._key("tokens")},
                args={"clone_id": clone_id, "token": token, "milliseconds": milliseconds(seconds)},
            )
        return bool(answer)

    async def change(self, change: NewChange) -> bool:
        """Writes a clone's next change. A repeated call has no further effect.

        Returns:
            False if another change came first, or if the token does not allow the change.
        """
        clone_id = change.clone_id
        async with answers_in_time():
            answer = await self._change(
                keys={
                    "feed": self._key("feed", clone_id),
                    "queued": self._key("queued"),
                    "leases": self._key("leases"),
                    "tokens": self._key("tokens"),
                    "open": self._key("open"),
                    "lane": self._key("lane", change.student_id),
                    "baseline": self._key("baseline", clone_id),
                    "sizes": self._key("sizes"),
                    "change_counter": self._key("change_counter"),
                    "ended": self._key("ended"),
                    "removals": self._key("removals"),
                },
                args={
                    "clone_id": clone_id,
                    "sequence": change.sequence,
                    "clone": change.clone,
                    "effect": change.effect,
                    "token": "" if change.token is None else change.token,
                    "delay_milliseconds": milliseconds(change.delay_seconds),
                    "channel": self.channel,
                },
            )
        return bool(answer)

    async def read_request(self, request_id: str) -> tuple[str, str] | None:
        """Returns the id of the clone that a request made, and the request's digest; None if it made no clone."""
        async with answers_in_time():
            values = await self._redis.hmget(self._key("request", request_id), ["clone_id", "digest"])
        clone_id, digest = cast("list[str | None]", values)
        return None if clone_id is None or digest is None else (clone_id, digest)

    async def read_latest(self, clone_ids: Sequence[str]) -> dict[str, str]:
        """Returns the current state of each clone by its id, without the clones that do not exist."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for clone_id in clone_ids:
                pipe.xrevrange(self._key("feed", clone_id), count=1)
            async with answers_in_time():
                feeds = await pipe.execute()
        return {
            clone_id: _clone_in(fields) for clone_id, feed in zip(clone_ids, feeds, strict=True) for _, fields in feed
        }

    async def is_unfinished(self, clone_id: str) -> bool:
        """Returns whether the clone is among those that are not final, which are kept apart from the feeds."""
        async with answers_in_time():
            return await self._redis.zscore(self._key("open"), clone_id) is not None

    async def read_changes(self, clone_id: str, *, after: int, limit: int | None = None) -> dict[int, str]:
        """Returns the clone as of each change after number `after`, by the change's number, in order."""
        async with answers_in_time():
            entries = await self._redis.xrange(self._key("feed", clone_id), min=f"{after + 1}-0", count=limit)
        return {
            int(entry_id.partition("-")[0]): _clone_in(fields)
            for entry_id, fields in cast("list[tuple[str, dict[str, str]]]", entries)
        }

    async def find_student(self, clone_id: str) -> str:
        """Returns whose clone this is, by the lists of all students: its record may not tell. "" if it is nobody's."""
        async with answers_in_time():
            student_ids = cast("list[str]", await self._redis.zrange(self._key("students"), 0, -1))
        async with self._redis.pipeline(transaction=False) as pipe:
            for student_id in student_ids:
                pipe.zscore(self._key("clones", student_id), clone_id)
            async with answers_in_time():
                numbers = await pipe.execute()
        return next(
            (student_id for student_id, number in zip(student_ids, numbers, strict=True) if number is not None), ""
        )

    async def read_feeds(self, clone_ids: Sequence[str], *, after: int | None, limit: int) -> StoredReading:
        """Returns changes of several clones as of one moment, in their order.

        Args:
            clone_ids: Of the clones.
            after: Number, among the changes of all clones, after which changes are returned. None returns the last
                change of each clone.
            limit: Most changes, unless `after` is None.
        """
        async with answers_in_time():
            answer = await self._read_script(
                keys={"feeds": [self._key("feed", clone_id) for clone_id in clone_ids]},
                args={"after": "" if after is None else after, "limit": limit},
            )
        missing, entries, is_whole = cast("tuple[list[int], list[tuple[int, int, str]], int]", answer)
        changes = [
            StoredChange(clone_id=clone_ids[index - 1], number=number, clone=clone) for index, number, clone in entries
        ]
        return StoredReading(
            changes=sorted(changes, key=lambda change: change.number),
            missing_ids=frozenset(clone_ids[index - 1] for index in missing),
            is_whole=bool(is_whole),
        )

    async def read_sequences(self, sequences: Mapping[str, int]) -> dict[str, str]:
        """Returns of each clone, by its id, the change with this sequence, without those that do not exist."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for clone_id, sequence in sequences.items():
                pipe.xrange(self._key("feed", clone_id), min=f"{sequence}-0", max=f"{sequence}-0")
            async with answers_in_time():
                feeds = await pipe.execute()
        return {
            clone_id: _clone_in(fields) for clone_id, feed in zip(sequences, feeds, strict=True) for _, fields in feed
        }

    async def read_change_number(self) -> int:
        """Returns the number of the latest change of any clone; 0 if there is none."""
        async with answers_in_time():
            return int(await self._redis.get(self._key("change_counter")) or 0)

    async def read_baseline(self, clone_id: str) -> str | None:
        """Returns the baseline, or None once the clone is final."""
        async with answers_in_time():
            return cast("str | None", await self._redis.get(self._key("baseline", clone_id)))

    async def list_numbers(self, student_id: str, *, below: int | None, limit: int) -> list[tuple[str, int]]:
        """Returns the ids and numbers of a student's clones, newest first; an empty id stands for all students."""
        newest = "+inf" if below is None else f"({below}"
        async with answers_in_time():
            ids_with_numbers = await self._redis.zrevrangebyscore(
                self._key("clones", student_id), newest, "-inf", start=0, num=limit, withscores=True
            )
        return [(clone_id, int(number)) for clone_id, number in cast("list[tuple[str, float]]", ids_with_numbers)]

    async def list_latest_ids(self, student_ids: Sequence[str], *, limit: int) -> list[list[str]]:
        """Returns for each student the ids of so many of their latest clones, newest first."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for student_id in student_ids:
                pipe.zrevrange(self._key("clones", student_id), 0, limit - 1)
            async with answers_in_time():
                return cast("list[list[str]]", await pipe.execute())

    async def read_backlog(self) -> Backlog:
        """Returns the unfinished clones and the pace, from which estimates are made."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrange(self._key("open"), 0, -1, withscores=True)
            pipe.hgetall(self._key("sizes"))
            pipe.hkeys(self._key("tokens"))
            pipe.mget(self._key("counter"), self._key("pace"))
            async with answers_in_time():
                places, sizes, running_ids, (counter, pace) = await pipe.execute()
        return Backlog(
            places=dict(places),
            sizes={clone_id: int(size) for clone_id, size in sizes.items()},
            running_ids=frozenset(running_ids),
            next_number=int(counter or 0) + 1,
            pace=None if pace is None else float(pace),
        )

    async def write_pace(self, pace: float) -> None:
        """Stores the seconds that a response takes."""
        async with answers_in_time():
            await self._redis.set(self._key("pace"), pace)

    async def count(self) -> tuple[int, int]:
        """Returns the number of waiting clones and the number of running clones."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zcard(self._key("open"))
            pipe.hlen(self._key("tokens"))
            async with answers_in_time():
                unfinished_count, running_count = await pipe.execute()
        return unfinished_count - running_count, running_count


def _clone_in(fields: Mapping[str, str]) -> str:
    """The clone's JSON in an entry of its feed; "", which is none, if the entry holds something else."""
    return fields.get("clone", "")
