"""Notices: wakes whoever waits for a change in the clone store, without anyone polling it.

One connection for the whole server hears of every change, however many wait. A notice says where to look, never what is
there: lost ones cost time and nothing else, and after every reconnect all who wait look again.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Self

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.log import get_logger
from mesh.subscription import subscribe

# How long silence lasts before the connection has to show that it lives, and how long that may take.
SILENCE_SECONDS = 2.0
# Between tries to connect.
RECONNECT_SECONDS = 0.5

_log = get_logger(__name__)


class Waiter:
    """Wakes when something may have changed since it last looked."""

    def __init__(self) -> None:
        self._noticed = asyncio.Event()

    def wake(self) -> None:
        """Lets the current or the next wait return at once."""
        self._noticed.set()

    async def wait(self, seconds: float) -> bool:
        """Waits for a notice and takes it; False if none came in time."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._noticed.wait()
        except TimeoutError:
            return False
        self._noticed.clear()
        return True


class Notices:
    """Listens to a channel of clone ids while it is entered."""

    def __init__(self, redis: Redis, channel: str) -> None:
        self._redis = redis
        self._channel = channel
        self._waiters: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._connected = False
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether the store answers."""
        return self._connected

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name="notices")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    @contextlib.contextmanager
    def waiter(self, clone_id: str = "") -> Iterator[Waiter]:
        """A waiter for the changes of one clone, or of any. Look after this, then wait: nothing is missed between."""
        waiter = Waiter()
        self._waiters[clone_id].add(waiter)
        try:
            yield waiter
        finally:
            self._waiters[clone_id].discard(waiter)
            if not self._waiters[clone_id]:
                del self._waiters[clone_id]

    async def _listen(self) -> None:
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    async for clone_id in subscribe(pubsub, self._channel, silence_seconds=SILENCE_SECONDS):
                        self._connected = True
                        # After a reconnect, all who wait look again.
                        self._wake(clone_id or "")
            except (RedisError, OSError) as error:
                if self._connected:
                    _log.warning("clone_store_lost", error=type(error).__name__)
                self._connected = False
            await asyncio.sleep(RECONNECT_SECONDS)

    def _wake(self, clone_id: str) -> None:
        topics = (clone_id, "") if clone_id else tuple(self._waiters)
        for topic in topics:
            for waiter in self._waiters.get(topic, ()):
                waiter.wake()
