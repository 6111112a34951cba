"""Objects that work in the background: what entering starts, and what leaving waits for and raises."""

import asyncio

import pytest
from structlog.testing import capture_logs

from mesh.background import BackgroundTask


class Recorder(BackgroundTask):
    """Waits to be cancelled, or to be told to fail; takes a while to end."""

    def __init__(self) -> None:
        self.has_started = asyncio.Event()
        self.shall_fail = asyncio.Event()
        self.has_ended = False

    async def _run(self) -> None:
        self.has_started.set()
        try:
            await self.shall_fail.wait()
            raise ValueError("a bug")
        finally:
            await asyncio.sleep(0.01)
            self.has_ended = True


async def test_leaving_cancels_the_work_and_waits_for_its_end() -> None:
    recorder = Recorder()
    running = [recorder.is_running]
    async with recorder:
        await recorder.has_started.wait()
        running.append(recorder.is_running)
    running.append(recorder.is_running)
    assert running == [False, True, False]
    assert recorder.has_ended


async def test_a_crash_is_logged_at_once_and_raised_when_the_object_is_left() -> None:
    recorder = Recorder()

    async def use() -> None:
        async with recorder:
            recorder.shall_fail.set()
            while recorder.is_running:  # noqa: ASYNC110 - the end of the work sets nothing else
                await asyncio.sleep(0)
            assert recorder.has_ended
            await asyncio.sleep(0)
            assert events

    with capture_logs() as events, pytest.raises(ValueError, match="a bug"):
        await use()
    assert [(event["event"], event["task"]) for event in events] == [("background_task_crashed", "Recorder")]


async def test_cancelling_whoever_waits_for_the_end_is_not_swallowed() -> None:
    recorder = Recorder()

    async def use() -> None:
        async with recorder:
            await recorder.has_started.wait()

    task = asyncio.create_task(use())
    await recorder.has_started.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait((task,))
    assert task.cancelled()
