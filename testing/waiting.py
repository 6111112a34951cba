"""Waiting on things that only their own word tells of."""

import asyncio
from collections.abc import Awaitable, Callable

from brain_server.vllm_engine.engine import VllmEngine

# Between two questions: short against what is waited for.
ASK_SECONDS = 0.1


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
    """Returns when it holds; raises `TimeoutError` if it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            if await holds():
                return
            await asyncio.sleep(ASK_SECONDS)


async def until_ready(engine: VllmEngine, *, ready: bool = True) -> None:
    """Returns when the engine can decode, or can't."""

    async def holds() -> bool:
        return engine.facts.ready is ready

    await until(holds, seconds=30)
