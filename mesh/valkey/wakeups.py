"""Wake-ups: coroutines that wait for a change in a store wake at once, and nobody polls the store.

Redis publishes the id of everything that changes. One subscription per server receives these ids, however many
coroutines wait. A wake-up says that something may have changed, never what. A lost one therefore costs only time, and
after each reconnect everybody wakes up and looks again.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.background import BackgroundTask
from mesh.log import get_logger
from mesh.subscription import subscribe

# After so much silence the connection is checked with a ping, which may take as long again.
SILENCE_SECONDS = 2.0
# Between attempts to connect.
RECONNECT_SECONDS = 0.5

_log = get_logger(__name__)


class Waiter:
    """Waits for a wake-up. One that comes before the wait is not lost."""

    def __init__(self) -> None:
        self._is_awake = asyncio.Event()

    def wake(self) -> None:
        """Ends the current wait, or the next one at once."""
        self._is_awake.set()

    async def wait(self, seconds: float) -> bool:
        """Waits for a wake-up; returns False if none came in time."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._is_awake.wait()
        except TimeoutError:
            return False
        self._is_awake.clear()
        return True


class Wakeups(BackgroundTask):
    """Listens to a channel of ids while it is entered.

    Args:
        redis: Publishes the ids.
        channel: Where; see `CloneStore.channel` and `AlertStore.channel`.
    """

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._waiters: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._is_connected = False
        self._connections = 0

    @property
    def is_connected(self) -> bool:
        """Whether Redis answers and wake-ups arrive."""
        return self._is_connected

    @property
    def connections(self) -> int:
        """How many there have been so far; Redis may have restarted before each, and lost something."""
        return self._connections

    @contextlib.contextmanager
    def waiter(self, *item_ids: str) -> Iterator[Waiter]:
        """Yields a waiter for changes of what has one of these ids; without ids, of everything.

        Enter this, then read it, then wait: so no change is missed in between.
        """
        waiter, topics = Waiter(), frozenset(item_ids or ("",))
        for topic in topics:
            self._waiters[topic].add(waiter)
        try:
            yield waiter
        finally:
            for topic in topics:
                self._waiters[topic].discard(waiter)
                if not self._waiters[topic]:
                    del self._waiters[topic]

    async def _run(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    async for item_id in subscribe(pubsub, self._channel, silence_seconds=SILENCE_SECONDS):
                        self._is_connected = True
                        # None: the connection is new, and changes may have been missed. Everybody looks again.
                        if item_id is None:
                            self._connections += 1
                        self._wake(item_id or "")
            except (RedisError, OSError) as error:
                if self._is_connected:
                    _log.warning("valkey_connection_lost", error=type(error).__name__)
            finally:
                # Also after a crash: nothing arrives until the next subscription is active.
                self._is_connected = False
            await asyncio.sleep(RECONNECT_SECONDS)

    def _wake(self, item_id: str) -> None:
        topics = (item_id, "") if item_id else tuple(self._waiters)
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.wake()
