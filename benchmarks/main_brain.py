"""The Main Brain that a benchmark measures: opened in this process, asked many things at once, and described."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from brain_server.engine.contract import AdapterPolicy, Engine, EngineFacts, Generation, Reply, Sampling, complete
from brain_server.settings import BrainSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from testing.waiting import until_loaded

T = TypeVar("T")

# Requests that are with the engine at once: its batch, and some that wait, so that no row is ever free.
_AT_ONCE = 32


@asynccontextmanager
async def open_main_brain(settings: BrainSettings) -> AsyncIterator[tuple[Engine, EngineFacts]]:
    """Loads the Main Brain of the settings, its roles included; yields its engine and facts.

    No student's adapter is used, so the store is never asked.

    Raises:
        RuntimeError: It can't be loaded.
    """
    async with AsyncExitStack() as stack:
        blobs = await stack.enter_async_context(
            S3Blobs(bucket=settings.s3_bucket, endpoint_url=settings.s3_endpoint_url)
        )
        engine = await stack.enter_async_context(TorchEngine.open(settings, AdapterStore(blobs)))
        facts = await until_loaded(engine)
        if not facts.ready:
            raise RuntimeError(facts.reason)
        yield engine, facts


def conditions_of(facts: EngineFacts) -> dict[str, object]:
    """Returns which Main Brain was measured, for the first line of results."""
    brain = facts.main_brain
    return {
        "base_model": facts.model,
        "main_brain": brain.digest if brain else "",
        "tutor": brain.tutor if brain else "none",
        "grader": brain.grader if brain else "zero-shot",
        "guard": brain.guard if brain else "none",
        "problems": list(brain.problems) if brain else [],
        "device": facts.device,
        "dtype": facts.dtype,
    }


async def gather(work: Iterable[Awaitable[T]], *, title: str) -> list[T]:
    """Returns the results of many requests in their order; a bar on standard error shows how many are done."""
    places = asyncio.Semaphore(_AT_ONCE)
    requests = list(work)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=len(requests))

        async def run(request: Awaitable[T]) -> T:
            async with places:
                result = await request
            progress.advance(bar)
            return result

        return list(await asyncio.gather(*map(run, requests)))


async def replies_to(
    engine: Engine, generations: Iterable[Generation], sampling: Sampling, *, title: str
) -> list[Reply]:
    """Returns the Main Brain's replies, without any student's adapter; the seed of a reply is its place."""
    asked = [
        replace(generation, policy=AdapterPolicy.BASE_ONLY, sampling=replace(sampling, seed=place))
        for place, generation in enumerate(generations)
    ]
    return await gather([complete(engine, generation) for generation in asked], title=title)
