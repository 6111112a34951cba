"""Real blobs under processes that die, that pause, or that hear no answer."""

import asyncio
from typing import TypeVar

from mesh.adapters.blobs import Blob, BlobConflict, Blobs, Entry, Erased

T = TypeVar("T")


class Crash(Exception):
    """The process ended here."""


class _Watched:
    """Passes every call on, after `_before` has seen it."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        await self._before(writes=False)
        return await self._blobs.read(key, limit_bytes=limit_bytes)

    async def create(self, key: str, data: bytes) -> None:
        await self._before(writes=True)
        await self._blobs.create(key, data)

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        await self._before(writes=True)
        await self._blobs.replace(key, data, etag=etag)

    async def keys(self, prefix: str) -> list[str]:
        await self._before(writes=False)
        return await self._blobs.keys(prefix)

    async def entries(self, prefix: str) -> list[Entry]:
        await self._before(writes=False)
        return await self._blobs.entries(prefix)

    async def delete(self, key: str, *, etag: str) -> None:
        await self._before(writes=True)
        await self._blobs.delete(key, etag=etag)

    async def erase(self, prefix: str) -> Erased:
        await self._before(writes=True)
        return await self._blobs.erase(prefix)

    async def forget(self, prefix: str) -> Erased:
        await self._before(writes=True)
        return await self._blobs.forget(prefix)

    async def check(self) -> None:
        await self._blobs.check()

    async def _before(self, *, writes: bool) -> None:
        """Is called before each call to the store, and told whether it writes."""


class CrashingBlobs(_Watched):
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


class PausingBlobs(_Watched):
    """A process that stands still just before its n-th call, of whatever kind, until it is let go.

    Attributes:
        go: Lets it go.
    """

    def __init__(self, blobs: Blobs, *, calls: int) -> None:
        super().__init__(blobs)
        self._calls = calls
        self._paused = asyncio.Event()
        self.go = asyncio.Event()

    async def reached(self, process: asyncio.Task[T]) -> None:
        """Returns when the process stands still, or has ended before it came so far."""
        pause = asyncio.create_task(self._paused.wait())
        await asyncio.wait([pause, process], return_when=asyncio.FIRST_COMPLETED)
        pause.cancel()

    async def _before(self, *, writes: bool) -> None:
        self._calls -= 1
        if self._calls == -1:
            self._paused.set()
            await self.go.wait()


class ForgetfulBlobs(_Watched):
    """A network that loses every answer to a write, so that the retry meets its own write."""

    async def create(self, key: str, data: bytes) -> None:
        await super().create(key, data)
        raise BlobConflict

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        await super().replace(key, data, etag=etag)
        raise BlobConflict

    async def delete(self, key: str, *, etag: str) -> None:
        await super().delete(key, etag=etag)
        raise BlobConflict
