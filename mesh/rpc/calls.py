"""What a servicer can know about the call that it answers."""

import time
from typing import Protocol

from structlog.contextvars import get_contextvars


class Context(Protocol):
    """A call as a servicer sees it.

    Less than gRPC's own context on purpose: a servicer raises errors instead of setting codes or aborting. The
    interceptor handles errors, call ids, logs and metrics.
    """

    def time_remaining(self) -> float | None:
        """Returns the seconds until the caller's deadline; None if it set none."""
        ...


def deadline_of(context: Context) -> float | None:
    """Returns the caller's deadline in `time.monotonic()` seconds; None if it set none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def call_id() -> str:
    """Returns the id of the running call, which is also in its log lines; empty outside a call."""
    current_id: str = get_contextvars().get("call_id", "")
    return current_id
