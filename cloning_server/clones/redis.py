"""The connection to Valkey or Redis: how long it is waited for, and what passes by itself.

Knows nothing of what is kept there.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from mesh.errors import CloneStoreUnavailable

# One server reads and writes little at a time; more connections would only queue in the store instead of here.
MAX_CONNECTIONS = 32
# A store that is there answers within milliseconds, or seconds where its disk is busy and every write is flushed; one
# that is not is told as such rather than waited for.
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 5.0
# Enough for a connection of the pool that a restart of the store has cut; an outage is for the caller to wait out.
RETRIES = 2

# What passes by itself: no answer, a replica during a failover, no memory left, a cluster that changes shape.
_TRANSIENT = (
    TimeoutError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
)


def open_redis(url: str) -> Redis:
    """Returns a client that connects when it is first used; close it with `aclose`."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        # Whoever calls sets a timeout around the whole. The client's own goes through `asyncio.wait_for`, which up to
        # Python 3.11 loses a cancellation that comes as it ends: a worker that was told to stop would go on.
        socket_timeout=None,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), RETRIES),
        decode_responses=True,
    )
    return Redis.from_pool(pool)


@contextlib.asynccontextmanager
async def answered() -> AsyncIterator[None]:
    """Wants the answer of what is inside within `ANSWER_SECONDS`.

    Raises:
        CloneStoreUnavailable: In place of all that passes by itself.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except _TRANSIENT as error:
        raise CloneStoreUnavailable(f"the clone store does not answer ({type(error).__name__})") from error
