"""The connection to Valkey or Redis: its timeouts, its retries, and the errors that are temporary.

Knows nothing of what is stored there.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff

from mesh.errors import AivoError

# One server reads and writes little at a time. More connections would move the queue into Redis, not shorten it.
MAX_CONNECTIONS = 32
# Redis answers within milliseconds, or within seconds while its disk is busy and it flushes every write. Callers learn
# of a Redis that does not answer; they do not wait for it.
CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 5.0
# Enough for a pooled connection that a restart of Redis has closed. Waiting out an outage is up to the caller.
RETRIES = 2
# How long a script keeps its answer for a call that is repeated: longer than the client repeats one.
ANSWER_STAYS_SECONDS = 60

# Temporary: no answer, a replica during a failover, no memory left, a cluster that changes shape, and rights that an
# operator takes away and gives back.
_TRANSIENT = (
    TimeoutError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
    exceptions.NoPermissionError,
)
# Temporary refusals for which the client has no class: the disk is full, too few replicas are connected, a script runs
# for too long.
_REFUSALS = frozenset({"MISCONF", "NOREPLICAS", "BUSY"})
# Redis answers with the code first; in a pipeline, the client writes before it which command was refused.
_CODE = re.compile(r"(?:^|caused error: )([A-Z]+) ")


def open_redis(url: str) -> Redis:
    """Returns a client that connects on first use; close it with `aclose`."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=ANSWER_SECONDS,
        socket_connect_timeout=CONNECT_SECONDS,
        # `answers_in_time` limits the whole call. The client's own timeout uses `asyncio.wait_for`, which loses a
        # cancellation that arrives as it ends (up to Python 3.11): a worker that should stop would go on.
        socket_timeout=None,
        retry=Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.1), RETRIES),
        decode_responses=True,
        # Bytes that are not text make one record unreadable, and fail no call.
        encoding_errors="replace",
    )
    return Redis.from_pool(pool)


@contextlib.asynccontextmanager
async def answers_in_time(unavailable: Callable[[str], AivoError], store: str) -> AsyncIterator[None]:
    """Limits the calls inside to `ANSWER_SECONDS`, and raises every temporary error as one of AIVO's.

    Args:
        unavailable: Makes the error that is raised in place of every temporary one.
        store: What the calls are about, such as `clone store`.

    Raises:
        AivoError: What `unavailable` makes.
    """
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            yield
    except _TRANSIENT as error:
        raise unavailable(f"the {store} does not answer ({type(error).__name__})") from error
    except exceptions.ResponseError as error:
        code = _CODE.search(str(error))
        if code is None or code[1] not in _REFUSALS:
            raise
        raise unavailable(f"the {store} refuses calls ({code[1]})") from error
