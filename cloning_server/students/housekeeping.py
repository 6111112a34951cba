"""Housekeeping: what nobody asked for and nobody reads is removed now and then, by one server at a time."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Self

from cloning_server.clones.clone_store import CloneStore
from cloning_server.students.erasure import Erasure
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError
from mesh.log import get_logger

# What a publication is made of may lie about uncommitted while it is under way; none takes so long.
ORPHAN_SECONDS = 24 * 3600.0
# Students whose time is over that are erased at a time.
STUDENTS_AT_A_TIME = 100

_log = get_logger(__name__)


class Housekeeping:
    """Keeps house while it is entered.

    Args:
        clones: Knows the students, and whose turn it is.
        adapters: Is swept.
        erasure: Removes students.
        every_seconds: Between two turns, of whichever server.
        retention: How long after their latest clone was accepted all data of a student goes; None: never.
    """

    def __init__(
        self,
        clones: CloneStore,
        *,
        adapters: AdapterStore,
        erasure: Erasure,
        every_seconds: float,
        retention: timedelta | None,
    ) -> None:
        self._clones = clones
        self._adapters = adapters
        self._erasure = erasure
        self._every_seconds = every_seconds
        self._retention = retention
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep(), name="housekeeping")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def keep_house(self) -> None:
        """Sweeps the adapter store, and erases the students whose time is over.

        Raises:
            AdapterStoreUnavailable, CloneStoreUnavailable: The rest is left for the next time.
        """
        if self._retention is not None:
            before = datetime.now(UTC) - self._retention
            for student_id in await self._clones.list_idle_students(before=before, limit=STUDENTS_AT_A_TIME):
                await self._erasure.erase(student_id)
        swept = await self._adapters.sweep(older_than_seconds=ORPHAN_SECONDS)
        _log.info("house_kept", swept=str(swept))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                # Half the time: a turn that lasts as long as the pause would hold up the next one's taker.
                if await self._clones.take_turn(seconds=self._every_seconds / 2):
                    await self.keep_house()
            except AivoError as error:
                _log.warning("house_not_kept", reason=error.reason)
