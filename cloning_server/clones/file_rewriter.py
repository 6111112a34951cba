"""Has Valkey rewrite its append-only file after students' data was removed: until then the file holds it.

Removals are counted in the store, in the step that removes (`scripts/change.lua`, `scripts/erase.lua`), so that no
crash of a server loses one. Any number of removals share a rewrite, and so do all servers.
"""

import asyncio
from contextlib import AbstractAsyncContextManager

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from mesh.background import BackgroundTask
from mesh.errors import CloneStoreUnavailable
from mesh.log import get_logger
from mesh.valkey.connection import answers_in_time

# Between two looks at a rewrite, which takes about a second per hundred megabytes.
POLL_SECONDS = 0.2

_log = get_logger(__name__)


class FileRewriter(BackgroundTask):
    """While entered, has the file rewritten whenever a removal is due to leave it.

    Args:
        redis: Holds one tenant's clones.
        tenant: Whose.
        every_seconds: Between two rewrites of any servers.
    """

    def __init__(self, redis: Redis, *, tenant: str, every_seconds: float) -> None:
        self._redis = redis
        self._prefix = f"{{aivo:{tenant}}}:"
        self._every_seconds = every_seconds

    async def rewrite_if_due(self) -> bool:
        """Has the file rewritten if data was removed since; returns whether all removals up to now are out of it.

        Raises:
            CloneStoreUnavailable: Valkey does not answer; a later call sees to it.
            ResponseError: Valkey refuses, as while another rewrite runs.
        """
        keys = [f"{self._prefix}{name}" for name in ("removals", "rewritten_removals")]
        async with _answers_in_time():
            removals, rewritten = await self._redis.mget(keys)
        if removals is None or removals == rewritten:
            return True
        async with _answers_in_time():
            turn = f"{self._prefix}file_rewrite"
            if not await self._redis.set(turn, "1", nx=True, px=max(1, round(self._every_seconds * 1000))):
                return False
            before = await self._redis.info()
        if before.get("aof_enabled"):
            # Another one may run that began before the removal.
            await self._wait_for_rewrite(before["run_id"])
            async with _answers_in_time():
                await self._redis.bgrewriteaof()
            if not await self._wait_for_rewrite(before["run_id"]):
                _log.warning("file_not_rewritten", why="the rewrite failed, or Valkey started again")
                return False
        async with _answers_in_time():
            await self._redis.set(keys[1], removals)
        return True

    async def _wait_for_rewrite(self, run_id: str) -> bool:
        """Returns, once no rewrite runs, whether the last one of this run of Valkey succeeded."""
        while True:
            async with _answers_in_time():
                info = await self._redis.info()
            if info["run_id"] != run_id:
                return False
            if not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]):
                return bool(info["aof_last_bgrewrite_status"] == "ok")
            await asyncio.sleep(POLL_SECONDS)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                await self.rewrite_if_due()
            except CloneStoreUnavailable as error:
                _log.warning("file_not_rewritten", why=str(error))
            except ResponseError as error:
                # A rewrite runs already; or a managed Valkey has no such command.
                _log.warning("file_not_rewritten", why=str(error))


def _answers_in_time() -> AbstractAsyncContextManager[None]:
    return answers_in_time(CloneStoreUnavailable, "clone store")
