"""Access to real blobs by processes that die, that pause, or that lose answers."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from mesh.adapters.blobs import Blob, BlobConflict, BlobEntry, Blobs, FolderPage, RemovedObjects

T = TypeVar("T")

# A write to the store that has not been sent yet.
Put = Callable[[], Awaitable[None]]


class Crash(Exception):
    """The process died here."""


class Watched:
    """Passes each call on after `_before`."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        await self._before(writes=False)
        return await self._blobs.read(key, limit_bytes=limit_bytes)

    async def create(self, key: str, data: bytes) -> None:
        await self._put(lambda: self._blobs.create(key, data))

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        await self._put(lambda: self._blobs.replace(key, data, etag=etag))

    async def keys(self, prefix: str) -> list[str]:
        await self._before(writes=False)
        return await self._blobs.keys(prefix)

    async def entries(self, prefix: str) -> AsyncIterator[BlobEntry]:
        await self._before(writes=False)
        async for entry in self._blobs.entries(prefix):
            yield entry

    async def folders(self, prefix: str, *, size: int, after: str | None = None) -> FolderPage:
        await self._before(writes=False)
        return await self._blobs.folders(prefix, size=size, after=after)

    async def delete(self, key: str, *, etag: str) -> None:
        await self._before(writes=True)
        await self._blobs.delete(key, etag=etag)

    async def erase(self, prefix: str) -> RemovedObjects:
        await self._before(writes=True)
        return await self._blobs.erase(prefix)

    async def forget(self, prefix: str) -> RemovedObjects:
        await self._before(writes=True)
        return await self._blobs.forget(prefix)

    async def forget_deleted(self, prefix: str) -> RemovedObjects:
        await self._before(writes=True)
        return await self._blobs.forget_deleted(prefix)

    async def check(self) -> None:
        await self._blobs.check()

    async def _put(self, call: Put) -> None:
        await self._before(writes=True)
        await call()

    async def _before(self, *, writes: bool) -> None:
        """Runs before each call to the store."""


class CountingBlobs(Watched):
    """Records which keys are read.

    Attributes:
        keys_read: The keys, in order.
    """

    def __init__(self, blobs: Blobs) -> None:
        super().__init__(blobs)
        self.keys_read: list[str] = []

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        self.keys_read.append(key)
        return await super().read(key, limit_bytes=limit_bytes)


class CrashingBlobs(Watched):
    """A process that dies just before its n-th write."""

    def __init__(self, blobs: Blobs, *, writes: int) -> None:
        super().__init__(blobs)
        self._writes = writes

    async def _before(self, *, writes: bool) -> None:
        if not writes:
            return
        if self._writes == 0:
            raise Crash
        self._writes -= 1


class MortalBlobs(Watched):
    """A process that pauses before each call and dies at some writes. A dead process sends no more calls.

    Args:
        blobs: The store.
        chance: Decides what happens.
        pause: Is awaited before each call.
        death_percent: Writes that are never sent because the process dies, in percent.
        late_percent: Writes that arrive after the process that sent them has died, in percent.
        deliver: Performs the writes of dead processes later.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        chance: random.Random,
        pause: Callable[[], Awaitable[None]],
        death_percent: float,
        late_percent: float = 0,
        deliver: Callable[[Put], None] | None = None,
    ) -> None:
        super().__init__(blobs)
        self._chance = chance
        self._pause = pause
        self._death_percent = death_percent
        self._late_percent = late_percent
        self._deliver = deliver
        self._is_dead = False

    def restart(self) -> None:
        """Puts a new process in the place of one that died."""
        self._is_dead = False

    async def _put(self, call: Put) -> None:
        if not self._is_dead and self._deliver is not None and self._happens(self._late_percent):
            self._is_dead = True
            self._deliver(call)
        await super()._put(call)

    async def _before(self, *, writes: bool) -> None:
        self._is_dead = self._is_dead or (writes and self._happens(self._death_percent))
        if self._is_dead:
            raise Crash
        await self._pause()

    def _happens(self, percent: float) -> bool:
        return self._chance.random() * 100 < percent


class PausingBlobs(Watched):
    """A process that pauses before its n-th call, of whatever kind, until `go` is set.

    Attributes:
        go: Ends the pause.
    """

    def __init__(self, blobs: Blobs, *, calls: int) -> None:
        super().__init__(blobs)
        self._calls = calls
        self._paused = asyncio.Event()
        self.go = asyncio.Event()

    async def reached(self, process: asyncio.Task[T]) -> None:
        """Returns when the process pauses, or has ended earlier."""
        pause = asyncio.create_task(self._paused.wait())
        await asyncio.wait([pause, process], return_when=asyncio.FIRST_COMPLETED)
        pause.cancel()

    async def _before(self, *, writes: bool) -> None:
        self._calls -= 1
        if self._calls == -1:
            self._paused.set()
            await self.go.wait()


class DelayingBlobs(Watched):
    """A process whose write does not arrive until `arrive` is called.

    Attributes:
        delayed: Set once the write is sent.
    """

    def __init__(self, blobs: Blobs) -> None:
        super().__init__(blobs)
        self.delayed = asyncio.Event()
        self._write: Put | None = None

    async def arrive(self) -> None:
        """Performs the write."""
        assert self._write is not None, "no write is under way"
        await self._write()

    async def _put(self, call: Put) -> None:
        self._write = call
        self.delayed.set()
        await asyncio.Event().wait()


class ForgetfulBlobs(Watched):
    """A network that loses every answer to a write, so that the retry conflicts with its own write."""

    async def create(self, key: str, data: bytes) -> None:
        await super().create(key, data)
        raise BlobConflict

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        await super().replace(key, data, etag=etag)
        raise BlobConflict

    async def delete(self, key: str, *, etag: str) -> None:
        await super().delete(key, etag=etag)
        raise BlobConflict
