"""Logs are events with facts, one line each; no exception gets a student's words into them."""

import asyncio
import gc
import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from mesh import log
from mesh.errors import StudentModelNotFound

SECRET = "my dog died on Tuesday"  # what a student might write


class Lines:
    """What was logged since `configure`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._stream = io.StringIO()

    def configure(self, **options: Any) -> None:
        with self._patch.context() as patch:
            patch.setattr(sys, "stderr", self._stream)
            defaults = {"level": "info", "form": "json", "service": "brain", "packages": ("mesh", "brain_server")}
            log.configure(**defaults | options)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield Lines(monkeypatch)
    root.handlers[:] = handlers
    root.setLevel(level)


def fail() -> None:
    raise ValueError(SECRET)


def test_an_event_is_one_json_line_with_its_facts_and_the_calls(lines: Lines) -> None:
    lines.configure()
    with structlog.contextvars.bound_contextvars(call_id="abc"):
        log.get_logger("mesh.test_facts").info("adapter_loaded", student_id="student123", load_ms=4.2)
    (event,) = lines.events
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "adapter_loaded",
        "student_id": "student123",
        "load_ms": 4.2,
        "call_id": "abc",
        "level": "info",
        "logger": "mesh.test_facts",
        "service": "brain",
    }


def test_the_level_is_for_our_loggers_and_libraries_only_warn(lines: Lines) -> None:
    lines.configure(level="debug")
    log.get_logger("mesh.test_level").debug("ours")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("something is %s", "wrong")
    assert [event["event"] for event in lines.events] == ["ours", "something is wrong"]
    lines.configure(level="warning")
    log.get_logger("mesh.test_level").info("quiet")
    assert len(lines.events) == 2


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_exception_is_its_type_and_frames_and_never_its_message(form: str, lines: Lines) -> None:
    lines.configure(form=form)
    try:
        try:
            fail()
        except ValueError as error:
            raise LookupError(f"no reply for {SECRET}") from error
    except LookupError:
        logging.getLogger("some.library").exception("failed")
        log.get_logger("mesh.test_exception").exception("failed")
    assert lines.text.count("builtins.LookupError") == lines.text.count("builtins.ValueError") == 2
    assert "test_log.py" in lines.text
    assert " fail" in lines.text
    assert SECRET not in lines.text


def test_a_group_of_exceptions_shows_each(lines: Lines) -> None:
    lines.configure()
    error = ExceptionGroup(SECRET, [ValueError(SECRET), OSError(SECRET)])
    log.get_logger("mesh.test_group").error("failed", exc_info=error)
    assert lines.events[0]["exception"].splitlines() == [
        "builtins.ExceptionGroup",
        "builtins.ValueError",
        "builtins.OSError",
    ]


def test_the_message_of_our_own_errors_is_kept(lines: Lines) -> None:
    lines.configure()
    log.get_logger("mesh.test_own").error("failed", exc_info=StudentModelNotFound(student_id="student123"))
    expected = "mesh.errors.StudentModelNotFound: student student123 has no active model"
    assert lines.events[0]["exception"] == expected


def test_a_task_that_failed_unseen_tells_nothing_of_its_message(lines: Lines) -> None:
    # Tasks that earlier tests have left would tell of themselves below.
    gc.collect()
    lines.configure()

    async def abandon() -> None:
        async def work() -> None:
            fail()

        task = asyncio.create_task(work())
        await asyncio.wait([task])
        del task
        gc.collect()

    asyncio.run(abandon())
    (event,) = lines.events
    assert event["event"] == "Task exception was never retrieved"
    assert event["exception"].startswith("builtins.ValueError\n")
    assert SECRET not in lines.text
