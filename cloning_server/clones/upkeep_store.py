"""What is removed from the clone store: students, old changes, and what the append-only file holds of them.

Changes that must be atomic are Lua scripts; see `scripts`.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

from redis.asyncio import Redis

from cloning_server.clones.layout import SCRIPTS, StoreKeys, answers_in_time, milliseconds
from cloning_server.clones.records import DueStudents, ErasedRecords
from mesh.adapters.ref import DEFAULT_TENANT
from mesh.valkey.connection import ANSWER_STAYS_SECONDS
from mesh.valkey.script import LuaScript


class UpkeepStore:
    """One tenant's clones in Redis, for whoever removes them.

    Every method raises `CloneStoreUnavailable` while Redis does not answer, or refuses because, say, its disk is full.
    """

    def __init__(self, redis: Redis, *, tenant: str = DEFAULT_TENANT) -> None:
        self._redis = redis
        self._key = StoreKeys(tenant)
        self._trim = LuaScript(redis, "trim", package=SCRIPTS)
        self._erase = LuaScript(redis, "erase", package=SCRIPTS)
        self._mark_idle = LuaScript(redis, "mark_idle", package=SCRIPTS)

    async def list_ids(self, student_id: str) -> list[str]:
        """Returns the ids of all clones of a student."""
        async with answers_in_time():
            return cast("list[str]", await self._redis.zrange(self._key("clones", student_id), 0, -1))

    async def read_lane(self, student_id: str) -> list[str]:
        """Returns the ids of the student's clones that are not final, in the order in which they run."""
        async with answers_in_time():
            return cast("list[str]", await self._redis.lrange(self._key("lane", student_id), 0, -1))

    async def erase(self, student_id: str, *, ended_ids: Sequence[str] = ()) -> ErasedRecords | None:
        """Removes everything about a student.

        Args:
            student_id: The student.
            ended_ids: Of clones that the caller has ended. They do not count as unfinished, whatever the store says: it
                may have lost a part of them.

        Returns:
            What was removed. None, and nothing is removed, if one of the student's clones is not final, or if another
            call removed them meanwhile.
        """
        student_clones, student_requests = self._key("clones", student_id), self._key("requests", student_id)
        lane = self._key("lane", student_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zrange(student_clones, 0, -1)
            pipe.smembers(student_requests)
            pipe.lrange(lane, 0, -1)
            async with answers_in_time():
                listed_ids, request_ids, unfinished_ids = await pipe.execute()
        if not set(unfinished_ids).issubset(ended_ids):
            return None
        clone_ids = list(dict.fromkeys([*listed_ids, *ended_ids]))
        records = [self._key(name, clone_id) for clone_id in clone_ids for name in ("feed", "baseline")]
        records += [self._key("request", request_id) for request_id in request_ids]
        async with answers_in_time():
            clone_count = await self._erase(
                keys={
                    "clones": self._key("clones"),
                    "student_clones": student_clones,
                    "student_requests": student_requests,
                    "lane": lane,
                    "students": self._key("students"),
                    "due": self._key("due"),
                    "ended": self._key("ended"),
                    "queued": self._key("queued"),
                    "open": self._key("open"),
                    "leases": self._key("leases"),
                    "tokens": self._key("tokens"),
                    "sizes": self._key("sizes"),
                    "removals": self._key("removals"),
                    "erasure": self._key("erasure", secrets.token_hex(8)),
                    "records": records,
                },
                args={
                    "student_id": student_id,
                    "channel": self._key.channel,
                    "stay_seconds": ANSWER_STAYS_SECONDS,
                    "listed_count": len(listed_ids),
                    "clone_ids": clone_ids,
                },
            )
        if cast("int", clone_count) < 0:
            return None
        return ErasedRecords(clones=cast("int", clone_count), request_ids=len(request_ids))

    async def is_idle(self, student_id: str, *, before: datetime) -> bool:
        """Returns whether the student's latest clone was accepted before this time; False for nobody's id."""
        async with answers_in_time():
            accepted = await self._redis.zscore(self._key("students"), student_id)
        return accepted is not None and accepted < milliseconds(before.timestamp())

    async def mark_idle_students(self, *, idle: timedelta, limit: int, marks_last: timedelta) -> DueStudents:
        """Marks the students whose latest clone was accepted long ago, by the store's clock.

        Args:
            idle: Longer ago than this. Marks of calls with another time do not count.
            limit: Most ids to return.
            marks_last: How long marks count without a further call.

        Returns:
            Those of them whom an earlier call has marked.
        """
        async with answers_in_time():
            answer = await self._mark_idle(
                keys={"students": self._key("students"), "due": self._key("due")},
                args={
                    "idle_milliseconds": milliseconds(idle.total_seconds()),
                    # The client repeats a call whose answer was lost, and must not find its own marks then.
                    "turn": secrets.token_hex(8),
                    "limit": limit,
                    "mark_milliseconds": milliseconds(marks_last.total_seconds()),
                },
            )
        total, before, due, student_ids = cast("tuple[int, int, int, list[str]]", answer)
        return DueStudents(
            total=total,
            before=datetime.fromtimestamp(before / 1000, UTC),
            due=due,
            student_ids=tuple(student_ids),
        )

    async def list_ended(self, *, longer_than: timedelta, limit: int) -> list[str]:
        """Returns clones that ended longer ago than this, by the store's clock, and whose feeds are whole."""
        async with answers_in_time():
            seconds, microseconds = await self._redis.time()
            latest = (seconds - longer_than.total_seconds()) * 1000 + microseconds // 1000
            clone_ids = await self._redis.zrangebyscore(self._key("ended"), "-inf", latest, start=0, num=limit)
        return cast("list[str]", clone_ids)

    async def trim(self, clone_id: str) -> None:
        """Leaves of the feed of a clone that has ended its first and its last change."""
        async with answers_in_time():
            await self._trim(
                keys={"feed": self._key("feed", clone_id), "ended": self._key("ended")}, args={"clone_id": clone_id}
            )

    async def take_turn(self, *, seconds: float) -> bool:
        """Gives the caller the turn at housekeeping for so many seconds; returns False if another server has it."""
        return await self._take(self._key("housekeeping"), seconds)

    async def unwritten_removals(self) -> int | None:
        """Returns how often data was removed up to now; None if the append-only file holds none of it any more."""
        async with answers_in_time():
            removals, rewritten = await self._redis.mget(self._key("removals"), self._key("rewritten_removals"))
        return None if removals is None or removals == rewritten else int(removals)

    async def take_rewrite_turn(self, *, seconds: float) -> bool:
        """Gives the caller the turn at rewriting the file for so many seconds; False if another server has it."""
        return await self._take(self._key("file_rewrite"), seconds)

    async def note_rewritten(self, removals: int) -> None:
        """Notes that so many removals have left the file."""
        async with answers_in_time():
            await self._redis.set(self._key("rewritten_removals"), removals)

    async def _take(self, key: str, seconds: float) -> bool:
        async with answers_in_time():
            return bool(await self._redis.set(key, "1", nx=True, px=milliseconds(seconds)))
