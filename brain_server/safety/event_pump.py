"""Reads a stream as fast as it comes, while who consumes it waits for something else."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Generic, TypeVar

from mesh.background import cancel_and_wait

T = TypeVar("T")


class EventPump(Generic[T]):
    """Runs a generator in a task of its own. Call `aclose` in the end, whatever happens.

    Args:
        events: The generator; it is closed before `aclose` returns.
    """

    def __init__(self, events: AsyncGenerator[T, None]) -> None:
        self._queue: asyncio.Queue[T | Exception | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(events), name="pump a stream")

    async def batches(self) -> AsyncGenerator[list[T], None]:
        """Yields all that came since the last batch, until the generator ends; raises what it raised."""
        while True:
            queued = [await self._queue.get()]
            while not self._queue.empty():
                queued.append(self._queue.get_nowait())
            events: list[T] = []
            for event in queued:
                if event is None or isinstance(event, Exception):
                    if events:
                        yield events
                    if event is not None:
                        raise event
                    return
                events.append(event)
            yield events

    async def aclose(self) -> None:
        """Ends the generator if it still runs, and returns once it is closed."""
        await cancel_and_wait(self._task)

    async def _run(self, events: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    self._queue.put_nowait(event)
        except Exception as error:  # noqa: BLE001 - `batches` raises it where it is awaited
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)
