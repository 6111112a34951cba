"""A scheduler that lets one process at a time make one step at the store; a seed decides the order."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass

from mesh.adapters.blobs import Blob, BlobConflict, BlobEntry, Blobs, FolderPage, RemovedObjects
from tests.mesh.adapters.faulty_blobs import Put

# A late write is delayed by one of these numbers of turns.
_DELAY_TURNS = (1, 5, 50)

# Iterations of the event loop after which every process waits for its turn or has ended.
_SETTLE_ITERATIONS = 24

_process: ContextVar[int] = ContextVar("process")


@dataclass(frozen=True, slots=True)
class _Waiting:
    process: int
    granted: asyncio.Future[None]


class Turns:
    """Grants turns at random.

    Args:
        chance: Draws the next process.
        sticky: Probability that the same process goes on; the higher, the longer the others pause.
    """

    def __init__(self, chance: random.Random, *, sticky: float) -> None:
        self._chance = chance
        self._sticky = sticky
        self._waiting: list[_Waiting] = []
        self._is_free = asyncio.Event()
        self._deliveries: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it until the block is left."""
        waiting = _Waiting(_process.get(), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
            yield
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            if waiting.granted.done() and not waiting.granted.cancelled():
                self._is_free.set()

    async def pause(self) -> None:
        """Waits for a turn and returns it at once: for steps that take no time."""
        async with self.turn():
            pass

    def deliver(self, put: Put) -> None:
        """Performs a write some turns later, for a process that does not wait for it."""

        async def arrive() -> None:
            for _ in range(self._chance.choice(_DELAY_TURNS)):
                await self.pause()
            with suppress(BlobConflict):
                await put()

        self._deliveries.append(asyncio.create_task(arrive()))

    async def run(self, processes: Iterable[Callable[[], Coroutine[None, None, None]]]) -> None:
        """Runs the processes until all have ended."""
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, process in enumerate(processes):
                token = _process.set(number)
                tasks.append(group.create_task(process()))
                _process.reset(token)
            last = 0
            while True:
                for _ in range(_SETTLE_ITERATIONS):
                    await asyncio.sleep(0)
                if not self._waiting:
                    if all(task.done() for task in (*tasks, *self._deliveries)):
                        return
                    raise AssertionError("a process waits for something other than its turn")
                waiting = self._choose(last)
                last = waiting.process
                self._waiting.remove(waiting)
                self._is_free.clear()
                waiting.granted.set_result(None)
                await self._is_free.wait()

    def _choose(self, last: int) -> _Waiting:
        same = [waiting for waiting in self._waiting if waiting.process == last]
        if same and self._chance.random() < self._sticky:
            return self._chance.choice(same)
        return self._chance.choice(self._waiting)


class TurnBlobs:
    """A process each of whose calls to the store takes one turn, so that calls never overlap."""

    def __init__(self, blobs: Blobs, turns: Turns) -> None:
        self._blobs = blobs
        self._turns = turns

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        async with self._turns.turn():
            return await self._blobs.read(key, limit_bytes=limit_bytes)

    async def create(self, key: str, data: bytes) -> None:
        async with self._turns.turn():
            await self._blobs.create(key, data)

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        async with self._turns.turn():
            await self._blobs.replace(key, data, etag=etag)

    async def keys(self, prefix: str) -> list[str]:
        async with self._turns.turn():
            return await self._blobs.keys(prefix)

    async def entries(self, prefix: str) -> AsyncIterator[BlobEntry]:
        async with self._turns.turn():
            entries = [entry async for entry in self._blobs.entries(prefix)]
        for entry in entries:
            yield entry

    async def folders(self, prefix: str, *, size: int, after: str | None = None) -> FolderPage:
        async with self._turns.turn():
            return await self._blobs.folders(prefix, size=size, after=after)

    async def delete(self, key: str, *, etag: str) -> None:
        async with self._turns.turn():
            await self._blobs.delete(key, etag=etag)

    async def erase(self, prefix: str) -> RemovedObjects:
        async with self._turns.turn():
            return await self._blobs.erase(prefix)

    async def forget(self, prefix: str) -> RemovedObjects:
        async with self._turns.turn():
            return await self._blobs.forget(prefix)

    async def forget_deleted(self, prefix: str) -> RemovedObjects:
        async with self._turns.turn():
            return await self._blobs.forget_deleted(prefix)

    async def check(self) -> None:
        async with self._turns.turn():
            await self._blobs.check()
