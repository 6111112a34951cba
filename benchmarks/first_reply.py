"""Seconds from StartClone to the first token of the student's new adapter, on the whole stack."""

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

from aivo.brain.v1.brain_service_pb2 import AdapterPolicy, GenerateStreamRequest, StudentContext
from aivo.cloning.v1 import cloning_service_pb2 as pb

from benchmarks.figures import Figure, Goal, percentiles
from benchmarks.lessons import Ground
from client.brain import BrainClient
from client.cloning import CloningClient
from mesh.settings import BaseModelSettings, load_settings
from testing.parts.stack import Stack, stack
from testing.parts.stores import seaweed, valkey

PROMPT = "Why does ice float on water?"


def first_reply(ground: Ground, *, responses: int) -> Iterator[Figure]:
    """Clones students one after another without cached replies, and after each a classmate with the same answers."""
    # The servers load their own.
    os.environ["DTYPE"] = ground.dtype
    cold, warm = asyncio.run(_measure(ground, responses=responses))
    facts = {"students": len(cold), "responses": responses, "device": ground.base.device.type}
    bounds = (15, 15) if ground.base.device.type == "cuda" else (45, 25)
    for name, seconds, bound in (("first_reply", cold, bounds[0]), ("first_reply_of_a_classmate", warm, bounds[1])):
        quantiles = percentiles(seconds)
        yield Figure(
            figure=name,
            value=quantiles["p50"],
            unit="s",
            goal=Goal(of="value", at_most=bound),
            facts={**facts, "p95": quantiles["p95"], "seconds": [round(value, 1) for value in seconds]},
        )


async def _measure(ground: Ground, *, responses: int) -> tuple[list[float], list[float]]:
    cold: list[float] = []
    warm: list[float] = []
    models = load_settings(BaseModelSettings).model_cache_dir.resolve()
    async with AsyncExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="aivo-benchmark-")))
        for name in ("s3", "redis"):
            (folder / name).mkdir()
        s3 = await running.enter_async_context(seaweed(folder / "s3"))
        redis = await running.enter_async_context(valkey(folder / "redis"))
        aivo = await running.enter_async_context(stack(folder, s3=s3, redis=redis, bucket="benchmark", models=models))
        # Both servers are healthy: their base models are loaded.
        for number in range(len(ground.requests)):
            request = ground.request(number, responses=responses)
            for name, seconds in ((request.student_id, cold), (f"{request.student_id}-classmate", warm)):
                request.student_id = name
                seconds.append(await _seconds_to_first_token(aivo, request))
    return cold, warm


async def _seconds_to_first_token(aivo: Stack, request: pb.StartCloneRequest) -> float:
    """Fails if the clone does, or if another adapter than its own answers."""
    context = StudentContext(student_id=request.student_id)
    question = GenerateStreamRequest(
        prompt=PROMPT, context=context, max_tokens=8, adapter_policy=AdapterPolicy.ADAPTER_POLICY_REQUIRE
    )
    async with CloningClient(aivo.cloning_address) as cloning, BrainClient(aivo.brain_address) as brain:
        began = time.perf_counter()
        started = await cloning.start(request)
        async with aclosing(cloning.watch(started.clone_id)) as changes:
            async for change in changes:
                last = change
        if last.status != "completed":
            raise RuntimeError(f"the clone of {request.student_id} ended as {last.status}")
        async with aclosing(brain.stream(question)) as messages:
            await anext(messages)
            seconds = time.perf_counter() - began
            async for message in messages:
                finished = message.finished
    if finished.adapter.student_id != request.student_id:
        raise RuntimeError("another adapter answered")
    return seconds
