"""Work in the background while an object is open. It starts again after a crash.

A crash is logged at once, and the work starts again after a pause. Work that keeps crashing has failed: its server
hears of it (see `mesh.rpc.server.Server.watch`), drains, and ends with `FAILED_STATUS`, so that whatever runs the
process starts a new one.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NoReturn, Self

from mesh.log import get_logger

# Before the first restart; doubles with each crash that follows soon.
FIRST_PAUSE_SECONDS = 0.5
# Restarts after crashes that follow each other within `STEADY_SECONDS`; the next such crash is final.
MAX_RESTARTS = 5
# Work that ran for so long before it crashed counts as working again: its earlier crashes are forgotten.
STEADY_SECONDS = 60.0
# The exit status of a server whose work has failed.
FAILED_STATUS = 3

_log = get_logger(__name__)


class TaskFailed(Exception):
    """Work in the background kept crashing; the process must end. The cause is the last crash."""


class BackgroundTask(ABC):
    """Base class of objects that work while they are entered with `async with`.

    Leaving cancels the work and waits for its end. Leaving raises `TaskFailed` if the work has failed.

    Attributes:
        max_restarts: How many crashes in a row are followed by a restart. 0: the first crash is final.
        restarts: How often the work was started again.
    """

    max_restarts: ClassVar[int] = MAX_RESTARTS
    restarts: int = 0
    _task: asyncio.Task[NoReturn] | None = None
    _crash: BaseException | None = None
    _is_leaving = False
    _on_failure: Callable[[], None] | None = None

    @abstractmethod
    async def _run(self) -> None:
        """Does the work, until it is cancelled. Is called again after it raised or returned, which is a bug."""

    @property
    def name(self) -> str:
        """The work's name in logs, health and metrics."""
        return type(self).__name__

    @property
    def is_running(self) -> bool:
        """Whether the work goes on. False before the object is entered, after it is left, and after a crash."""
        return self._task is not None and not self._task.done() and self._crash is None

    @property
    def has_failed(self) -> bool:
        """Whether the work has crashed and does not start again."""
        return self._task is not None and self._task.done() and not self._task.cancelled()

    @property
    def fault(self) -> str:
        """Why the work does not go on; empty if it has not crashed, or runs again."""
        if self._crash is None:
            return ""
        outlook = "does not start again" if self.has_failed else "starts again soon"
        return f"{self.name} crashed ({type(self._crash).__name__}) and {outlook}"

    def call_on_failure(self, on_failure: Callable[[], None]) -> None:
        """Has this called, in the event loop, once the work has failed. Replaces an earlier one."""
        self._on_failure = on_failure

    async def __aenter__(self) -> Self:
        self._is_leaving = False
        self._task = asyncio.create_task(self._run_and_restart(), name=self.name)
        self._task.add_done_callback(self._report_failure)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._is_leaving = True
        await cancel_and_wait(self._task)

    async def _run_and_restart(self) -> NoReturn:
        crashes = 0
        while True:
            started_at = time.monotonic()
            crash = await self._run_until_crash()
            crashes = 1 if time.monotonic() - started_at >= STEADY_SECONDS else crashes + 1
            self._crash = crash
            if crashes > self.max_restarts or self._is_leaving:
                _log.error("background_task_failed", task=self.name, restarts=self.restarts, exc_info=crash)
                raise TaskFailed(f"{self.name} crashed, after {self.restarts} restarts") from crash
            pause_seconds = FIRST_PAUSE_SECONDS * 2 ** (crashes - 1)
            _log.error("background_task_crashed", task=self.name, restart_seconds=pause_seconds, exc_info=crash)
            await asyncio.sleep(pause_seconds)
            self._crash = None
            self.restarts += 1

    async def _run_until_crash(self) -> BaseException:
        try:
            await self._run()
        except asyncio.CancelledError as error:
            # Not `Task.cancelling`: a task group whose child crashes leaves it raised (Python 3.11).
            if self._is_leaving:
                raise
            # Nobody cancels this work: something that it waited for was cancelled.
            return error
        except Exception as error:  # noqa: BLE001 - whatever a bug raises
            return error
        if self._is_leaving:
            raise asyncio.CancelledError
        return RuntimeError("the work ended by itself")

    def _report_failure(self, _: asyncio.Task[NoReturn]) -> None:
        if self.has_failed and self._on_failure is not None:
            self._on_failure()


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits until it has ended; raises the exception of a task that failed."""
    task.cancel()
    # Not `await task`: that would not tell the task's cancellation from the caller's.
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
