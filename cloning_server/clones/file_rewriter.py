"""Has Valkey rewrite its append-only file after students' data was removed: until then the file holds it.

Removals are counted in the store, in the step that removes (`scripts/change.lua`, `scripts/erase.lua`), so that no
crash of a server loses one. Any number of removals share a rewrite, and so do all servers.
"""

import asyncio

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from cloning_server.clones.layout import answers_in_time
from cloning_server.clones.upkeep_store import UpkeepStore
from mesh.background import BackgroundTask
from mesh.errors import CloneStoreUnavailable
from mesh.log import get_logger

# Between two looks at a rewrite, which takes about a second per hundred megabytes.
POLL_SECONDS = 0.2

_log = get_logger(__name__)


class FileRewriter(BackgroundTask):
    """While entered, has the file rewritten whenever a removal is due to leave it.

    Args:
        store: Counts the removals.
        redis: The same Valkey, whose file it is.
        every_seconds: Between two rewrites of any servers.
    """

    def __init__(self, store: UpkeepStore, redis: Redis, *, every_seconds: float) -> None:
        self._store = store
        self._redis = redis
        self._every_seconds = every_seconds
        self._problems: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why Valkey did not rewrite its file when this server asked last; empty if it did."""
        return self._problems

    async def rewrite_if_due(self) -> bool:
        """Has the file rewritten if data was removed since; returns whether all removals up to now are out of it.

        Raises:
            CloneStoreUnavailable: Valkey does not answer; a later call sees to it.
        """
        removals = await self._store.unwritten_removals()
        if removals is None:
            self._problems = ()
            return True
        if not await self._store.take_rewrite_turn(seconds=self._every_seconds):
            return False
        try:
            is_rewritten = await self._rewrite()
        except (CloneStoreUnavailable, ResponseError) as error:
            # A managed Valkey may have no such command, or not allow it.
            self._problems = (f"Valkey does not rewrite its append-only file: {error}",)
            _log.warning("file_not_rewritten", why=str(error))
            return False
        if is_rewritten:
            self._problems = ()
            await self._store.note_rewritten(removals)
        else:
            why = "the rewrite failed, or Valkey started again"
            self._problems = (f"Valkey does not rewrite its append-only file: {why}",)
            _log.warning("file_not_rewritten", why=why)
        return is_rewritten

    async def _rewrite(self) -> bool:
        async with answers_in_time():
            before = await self._redis.info()
        if not before.get("aof_enabled"):
            return True
        # Another rewrite may run that began before the removal.
        await self._wait_for_rewrite(before["run_id"])
        async with answers_in_time():
            await self._redis.bgrewriteaof()
        return await self._wait_for_rewrite(before["run_id"])

    async def _wait_for_rewrite(self, run_id: str) -> bool:
        """Returns, once no rewrite runs, whether the last one of this run of Valkey succeeded."""
        while True:
            async with answers_in_time():
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
