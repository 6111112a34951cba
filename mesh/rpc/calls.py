"""What a servicer can know about the call that it answers."""

import time
from collections.abc import Iterable
from typing import Protocol

from structlog.contextvars import get_contextvars

_FORWARDED_FOR = "x-forwarded-for"


class Context(Protocol):
    """A call as a servicer sees it.

    Less than gRPC's own context on purpose: a servicer raises errors instead of setting codes or aborting. The
    interceptor handles errors, call ids, logs and metrics.
    """

    def time_remaining(self) -> float | None:
        """Returns the seconds until the caller's deadline; None if it set none."""
        ...

    def peer(self) -> str:
        """Returns the address at the other end of the connection, as gRPC writes it: `ipv4:127.0.0.1:4242`."""
        ...

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns the headers of the call."""
        ...


def deadline_of(context: Context) -> float | None:
    """Returns the caller's deadline in `time.monotonic()` seconds; None if it set none."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def caller_of(context: Context) -> str:
    """Returns the address from which the call comes, without a port.

    That is the last one in `x-forwarded-for`, which the gateway adds; without a gateway, the peer's. It is good for
    sharing places fairly, and no proof of who calls: who calls a server directly can send any header.
    """
    for name, value in context.invocation_metadata() or ():
        if name == _FORWARDED_FOR and isinstance(value, str):
            return value.rpartition(",")[2].strip()
    return context.peer().rpartition(":")[0]


def call_id() -> str:
    """Returns the id of the running call, which is also in its log lines; empty outside a call."""
    current_id: str = get_contextvars().get("call_id", "")
    return current_id
