"""Objects that work in the background: what entering starts, what becomes of a crash, and what leaving waits for."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from structlog.testing import capture_logs

from mesh import background
from mesh.background import MAX_RESTARTS, BackgroundTask, TaskFailed
from mesh.log import get_logger
from testing.waiting import until


class Recorder(BackgroundTask):
    """Waits to be cancelled, or to be told to fail; takes a while to end."""

    def __init__(self) -> None:
        self.runs = 0
        self.has_started = asyncio.Event()
        self.shall_fail = asyncio.Event()
        self.has_ended = False

    async def _run(self) -> None:
        self.runs += 1
        self.has_started.set()
        try:
            await self.shall_fail.wait()
            raise ValueError("a bug")
        finally:
            await asyncio.sleep(0.01)
            self.has_ended = True


class Scripted(BackgroundTask):
    """Does one thing per run, then waits to be cancelled."""

    def __init__(self, *steps: Callable[[], Awaitable[None]]) -> None:
        self._steps = list(steps)

    async def _run(self) -> None:
        if self._steps:
            await self._steps.pop(0)()
            return
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def fresh_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that has not been used under the configuration of another test, so that its events are captured."""
    monkeypatch.setattr(background, "_log", get_logger(background.__name__))


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 0.001)


async def crash() -> None:
    raise ValueError("a bug")


async def end() -> None:
    """Returns, which work in the background must not."""


async def await_what_is_cancelled() -> None:
    other: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    other.cancel()
    await other


async def crash_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(crash())
        group.create_task(asyncio.Event().wait())


async def until_failed(task: BackgroundTask) -> None:
    async def holds() -> bool:
        return task.has_failed

    await until(holds, seconds=10)


async def test_leaving_cancels_the_work_and_waits_for_its_end() -> None:
    recorder = Recorder()
    running = [recorder.is_running]
    async with recorder:
        await recorder.has_started.wait()
        running.append(recorder.is_running)
    running.append(recorder.is_running)
    assert running == [False, True, False]
    assert recorder.has_ended
    assert not recorder.has_failed


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    ("misstep", "fault"),
    [
        (crash, "ValueError"),
        (end, "RuntimeError"),
        (await_what_is_cancelled, "CancelledError"),
        (crash_in_a_group, "ExceptionGroup"),
    ],
)
async def test_work_that_ends_is_logged_at_once_and_starts_again(
    misstep: Callable[[], Awaitable[None]], fault: str
) -> None:
    task = Scripted(misstep)

    async def runs_again() -> bool:
        return task.restarts == 1 and task.is_running

    with capture_logs() as events:
        async with task:
            await until(runs_again, seconds=10)
            assert task.fault == ""
    assert [(event["event"], event["task"]) for event in events] == [("background_task_crashed", "Scripted")]
    assert type(events[0]["exc_info"]).__name__ == fault


async def test_while_it_waits_for_its_restart_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "FIRST_PAUSE_SECONDS", 600.0)
    recorder = Recorder()
    async with recorder:
        recorder.shall_fail.set()
        while recorder.is_running:  # noqa: ASYNC110 - the end of the work sets nothing else
            await asyncio.sleep(0)
        assert recorder.fault == "Recorder crashed (ValueError) and starts again soon"
        assert (recorder.restarts, recorder.has_failed) == (0, False)


@pytest.mark.usefixtures("short_pauses")
async def test_work_that_keeps_crashing_fails_and_leaving_raises_that() -> None:
    failures: list[str] = []
    task = Scripted(*[crash] * (MAX_RESTARTS + 2))
    task.call_on_failure(lambda: failures.append(task.fault))

    async def use() -> None:
        async with task:
            await until_failed(task)
            await asyncio.sleep(0)
            assert failures == ["Scripted crashed (ValueError) and does not start again"]

    with capture_logs() as events, pytest.raises(TaskFailed, match="Scripted") as caught:
        await use()
    assert isinstance(caught.value.__cause__, ValueError)
    assert [event["event"] for event in events] == ["background_task_crashed"] * MAX_RESTARTS + [
        "background_task_failed"
    ]


@pytest.mark.usefixtures("short_pauses")
async def test_work_that_ran_for_long_before_each_crash_goes_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STEADY_SECONDS", 0.0)
    task = Scripted(*[crash] * (3 * MAX_RESTARTS))

    async def runs_again() -> bool:
        return task.restarts == 3 * MAX_RESTARTS and task.is_running

    async with task:
        await until(runs_again, seconds=10)


async def test_a_crash_on_the_way_out_is_logged_and_raised() -> None:
    class Clumsy(BackgroundTask):
        async def _run(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("a bug in cleaning up")

    async def use() -> None:
        async with Clumsy():
            await asyncio.sleep(0)

    with capture_logs() as events, pytest.raises(TaskFailed):
        await use()
    assert [event["event"] for event in events] == ["background_task_failed"]


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
