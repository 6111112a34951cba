"""Replaces `datetime.datetime` in a process that tests start, before anything else imports it; see `testing.clock`."""

import datetime as dt
import os
from pathlib import Path
from typing import Self

_FILE = Path.cwd() / os.environ["CLOCK_OFFSET_FILE"]
_RealDatetime = dt.datetime


class _AnyDatetime(type):
    """Times that C code makes are of the real class, and count too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _RealDatetime)


class _ShiftedDatetime(_RealDatetime, metaclass=_AnyDatetime):
    # As large as the real class, which C code checks.
    __slots__ = ()

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Self:
        return super().now(tz) + _offset()

    @classmethod
    def utcnow(cls) -> Self:
        return super().utcnow() + _offset()

    @classmethod
    def today(cls) -> Self:
        return super().today() + _offset()


def _offset() -> dt.timedelta:
    try:
        # It is empty for a moment while it is written.
        return dt.timedelta(seconds=float(_FILE.read_text() or 0))
    except FileNotFoundError:
        return dt.timedelta()


# Pickled times name their class.
_ShiftedDatetime.__module__ = _ShiftedDatetime.__name__ = _ShiftedDatetime.__qualname__ = "datetime"
dt.datetime = _ShiftedDatetime  # type: ignore[misc] # on purpose
