"""Work in the background while an object is open."""

import asyncio
from abc import ABC, abstractmethod
from typing import Self

from mesh.log import get_logger

_log = get_logger(__name__)


class BackgroundTask(ABC):
    """Base class of objects that work while they are entered with `async with`.

    Leaving cancels the work and waits for its end. If a bug ends the work, it is logged at once, and leaving raises its
    exception.
    """

    _task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _run(self) -> None:
        """Does the work, until it is cancelled."""

    @property
    def is_running(self) -> bool:
        """Whether the work goes on. False before the object is entered, and after the work has ended or crashed."""
        return self._task is not None and not self._task.done()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=type(self).__name__)
        self._task.add_done_callback(_log_crash)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        await cancel_and_wait(self._task)


def _log_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background_task_crashed", task=task.get_name(), exc_info=error)


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits until it has ended; raises the exception of a task that failed."""
    task.cancel()
    # Not `await task`: that would not tell the task's cancellation from the caller's.
    await asyncio.wait((task,))
    if not task.cancelled():
        task.result()
