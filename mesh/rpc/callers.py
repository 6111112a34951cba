"""Callers: who calls, as far as a server can see, and a bound on the calls that each has at a time."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc

from mesh.errors import QueueFull

# The gateway overwrites it with the address that called the gateway; other proxies add theirs at the end.
FORWARDED_KEY = "x-forwarded-for"

# A caller's calls end when the caller wants, so nobody can say when to try again.
_RETRY_SECONDS = 1.0

# Quoted, as this is generic to the type checker alone.
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def caller_of(context: _Context) -> str:
    """Returns the address of whoever calls: of the gateway's caller, or of the peer if no gateway passed the call on.

    A peer that is no gateway can name any address.
    """
    addresses = [value for key, value in context.invocation_metadata() or () if key == FORWARDED_KEY]
    if addresses:
        return str(addresses[-1]).rpartition(",")[2].strip()
    # Without the port, which each connection has anew.
    return context.peer().rpartition(":")[0]


class Callers:
    """Counts the calls of each caller.

    Args:
        limit: Most calls of one caller at a time.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()

    @contextmanager
    def call(self, caller: str) -> Iterator[None]:
        """Counts a call until it ends.

        Raises:
            QueueFull: The caller has as many as one may have.
        """
        if self._counts[caller] >= self._limit:
            raise QueueFull(limit=self._limit, retry_seconds=_RETRY_SECONDS, whose="one caller")
        self._counts[caller] += 1
        try:
            yield
        finally:
            self._counts[caller] -= 1
            if not self._counts[caller]:
                del self._counts[caller]
