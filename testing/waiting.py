"""Polling for conditions that send no signal."""

import asyncio
from collections.abc import Awaitable, Callable

from brain_server.engine.contract import Engine, EngineFacts
from brain_server.vllm_engine.engine import VllmEngine

# Between two polls: short beside any wait.
POLL_SECONDS = 0.1
# A 7B model from a slow disk takes minutes.
LOAD_SECONDS = 600


async def until(holds: Callable[[], Awaitable[bool]], *, seconds: float) -> None:
    """Returns once the condition holds; raises `TimeoutError` if it does not in time."""
    async with asyncio.timeout(seconds):
        while True:
            if await holds():
                return
            await asyncio.sleep(POLL_SECONDS)


async def until_ready(engine: VllmEngine, *, ready: bool = True) -> None:
    """Returns once the engine is ready, or no longer ready."""

    async def holds() -> bool:
        return engine.facts.ready is ready

    await until(holds, seconds=30)


async def until_loaded(engine: Engine) -> EngineFacts:
    """Returns the engine's facts once its base model is loaded or has failed to load."""

    async def is_settled() -> bool:
        return not engine.facts.loading

    await until(is_settled, seconds=LOAD_SECONDS)
    return engine.facts
