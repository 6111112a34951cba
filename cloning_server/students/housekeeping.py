"""Housekeeping: one server at a time removes leftovers and the students whose retention time is over."""

import asyncio
from datetime import UTC, datetime, timedelta

from cloning_server.clones.clone_store import CloneStore
from cloning_server.students.erasure import Erasure
from mesh.adapters.store import AdapterStore
from mesh.background import BackgroundTask
from mesh.errors import AivoError, Unavailable
from mesh.log import get_logger

# The sweep removes uncommitted files that are older than this. No publication takes so long.
ORPHAN_SECONDS = 24 * 3600.0
# Most students that one turn erases.
STUDENTS_PER_TURN = 100

_log = get_logger(__name__)


class Housekeeping(BackgroundTask):
    """Removes what is no longer needed, again and again while it is entered.

    Args:
        store: Holds the students and the turn.
        adapters: Is swept.
        erasure: Erases students.
        every_seconds: Between two turns of any servers.
        retention: How long a student's data stays after their latest clone was accepted; None is for ever.
    """

    def __init__(
        self,
        store: CloneStore,
        *,
        adapters: AdapterStore,
        erasure: Erasure,
        every_seconds: float,
        retention: timedelta | None,
    ) -> None:
        self._store = store
        self._adapters = adapters
        self._erasure = erasure
        self._every_seconds = every_seconds
        self._retention = retention

    async def clean_up(self) -> None:
        """Erases the students whose retention time is over, and sweeps the adapter store.

        A student who can't be erased is logged and stays; the others are erased all the same.

        Raises:
            Unavailable: A store does not answer; the rest is left for the next turn.
        """
        if self._retention is not None:
            before = datetime.now(UTC) - self._retention
            for student_id in await self._store.list_idle_students(before=before, limit=STUDENTS_PER_TURN):
                await self._erase(student_id, before=before)
        report = await self._adapters.sweep(older_than_seconds=ORPHAN_SECONDS)
        _log.info("housekeeping_done", swept=str(report))

    async def _erase(self, student_id: str, *, before: datetime) -> None:
        try:
            # Spares a student who was cloned again after the list was read.
            await self._erasure.erase_idle(student_id, before=before)
        except Unavailable:
            raise
        except Exception:  # noqa: BLE001 - whatever is wrong with one student's data, the others' time is over too
            _log.exception("retention_failed", student_id=student_id)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_seconds)
            try:
                # Half the time: a turn as long as the pause would block the server that comes next.
                if await self._store.take_turn(seconds=self._every_seconds / 2):
                    await self.clean_up()
            except AivoError as error:
                _log.warning("housekeeping_failed", reason=error.reason)
