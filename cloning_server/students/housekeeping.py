"""Housekeeping: one server at a time removes leftovers, old changes and the students whose retention time is over.

All times are by the stores' clocks, as a server's own may be wrong. A turn marks the students whose time is over, and a
later turn erases those who still are, so a clock that is wrong for a moment erases nobody. After a pause, or with
another retention time, everybody is marked anew. A turn that would erase many students erases none, and says so until a
person has looked.
"""

import asyncio
from datetime import datetime, timedelta

from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.students.erasure import Erasure
from mesh.adapters.store import AdapterStore
from mesh.background import BackgroundTask
from mesh.errors import AivoError, Unavailable
from mesh.log import get_logger

# The sweep removes uncommitted files that are older than this. No publication takes so long.
ORPHAN_SECONDS = 24 * 3600.0
# Most students that one turn erases.
STUDENTS_PER_TURN = 100
# So many are erased whatever their share: in a small store, a few students are many of all.
ALWAYS_ERASED = 10
# A mark counts for so long after the latest turn, or for so many intervals if that is longer. A turn may take hours, as
# it sweeps the adapter store; a pause in which retention was off, or no server ran, takes longer.
MARKS_LAST = timedelta(days=1)
MARKS_LAST_INTERVALS = 3
# Clones whose ids are read at once, to trim their feeds.
CLONES_PER_READING = 1000

_log = get_logger(__name__)


class Housekeeping(BackgroundTask):
    """Removes what is no longer needed, again and again while it is entered.

    Args:
        store: Holds the students and the turn.
        adapters: Is swept.
        erasure: Erases students.
        every_seconds: Between two turns of any servers.
        keep_changes: How long the changes of a clone stay after it has ended; its first and its last stay longer.
        retention: How long a student's data stays after their latest clone was accepted; None is for ever.
        largest_share: Largest share of all students that may be due in a turn. If more are, and more than
            `ALWAYS_ERASED`, it erases nobody.
    """

    def __init__(
        self,
        store: UpkeepStore,
        *,
        adapters: AdapterStore,
        erasure: Erasure,
        every_seconds: float,
        keep_changes: timedelta,
        retention: timedelta | None,
        largest_share: float,
    ) -> None:
        self._store = store
        self._adapters = adapters
        self._erasure = erasure
        self._every_seconds = every_seconds
        self._keep_changes = keep_changes
        self._retention = retention
        self._largest_share = largest_share
        self._problems: tuple[str, ...] = ()

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the last turn of this server erased nobody; empty if it went as it should."""
        return self._problems

    async def clean_up(self) -> None:
        """Erases the students who were marked, marks others, trims feeds, and sweeps the adapter store.

        A student who can't be erased is logged and stays; the others are erased all the same.

        Raises:
            Unavailable: A store does not answer; the rest is left for the next turn.
        """
        if self._retention is not None:
            await self._erase_due(self._retention)
        while clone_ids := await self._store.list_ended(longer_than=self._keep_changes, limit=CLONES_PER_READING):
            for clone_id in clone_ids:
                await self._store.trim(clone_id)
        report = await self._adapters.sweep(older_than_seconds=ORPHAN_SECONDS)
        _log.info("housekeeping_done", swept=str(report))

    async def _erase_due(self, retention: timedelta) -> None:
        due = await self._store.mark_idle_students(
            idle=retention,
            limit=STUDENTS_PER_TURN,
            marks_last=max(MARKS_LAST, MARKS_LAST_INTERVALS * timedelta(seconds=self._every_seconds)),
        )
        if due.due > max(ALWAYS_ERASED, self._largest_share * due.total):
            self._problems = (f"retention is stopped: it would erase {due.due} of {due.total} students",)
            _log.error("retention_stopped", due=due.due, students=due.total)
            return
        self._problems = ()
        for student_id in due.student_ids:
            await self._erase(student_id, before=due.before)

    async def _erase(self, student_id: str, *, before: datetime) -> None:
        try:
            # Spares a student who was cloned again after the marks were read.
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
