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

from benchmarks.cloning_setup import CloningSetup
from benchmarks.figures import Figure, Goal, percentiles
from client.brain import BrainClient
from client.cloning import CloningClient
from mesh.settings import BaseModelSettings, load_settings
from testing.parts.stack import Stack, stack
from testing.parts.stores import seaweed, valkey

PROMPT = "Why does ice float on water?"


def first_reply(setup: CloningSetup, *, responses: int) -> Iterator[Figure]:
    """Clones each student without cached replies, then a classmate with the same answers."""
    # The servers read it from the environment.
    os.environ["DTYPE"] = setup.dtype
    cold, warm = asyncio.run(_measure(setup, responses=responses))
    facts = {"students": len(cold), "responses": responses, "device": setup.base.device.type}
    limits = (15, 15) if setup.base.device.type == "cuda" else (45, 25)
    for name, seconds, limit in (("first_reply", cold, limits[0]), ("first_reply_of_a_classmate", warm, limits[1])):
        quantiles = percentiles(seconds)
        yield Figure(
            figure=name,
            value=quantiles["p50"],
            unit="s",
            goal=Goal(of="value", at_most=limit),
            facts={**facts, "p95": quantiles["p95"], "seconds": [round(value, 1) for value in seconds]},
        )


async def _measure(setup: CloningSetup, *, responses: int) -> tuple[list[float], list[float]]:
    cold: list[float] = []
    warm: list[float] = []
    models = load_settings(BaseModelSettings).model_cache_dir.resolve()
    async with AsyncExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="aivo-benchmark-")))
        for name in ("s3", "redis"):
            (folder / name).mkdir()
        s3 = await resources.enter_async_context(seaweed(folder / "s3"))
        redis = await resources.enter_async_context(valkey(folder / "redis"))
        aivo = await resources.enter_async_context(stack(folder, s3=s3, redis=redis, bucket="benchmark", models=models))
        # Both servers are healthy now, so loading their base models is not measured.
        for number in range(len(setup.requests)):
            request = setup.request(number, responses=responses)
            for student_id, seconds in ((request.student_id, cold), (f"{request.student_id}-classmate", warm)):
                request.student_id = student_id
                seconds.append(await _seconds_to_first_token(aivo, request))
    return cold, warm


async def _seconds_to_first_token(aivo: Stack, request: pb.StartCloneRequest) -> float:
    """Clones a student and asks a question; raises RuntimeError if the clone fails or another adapter answers."""
    context = StudentContext(student_id=request.student_id)
    question = GenerateStreamRequest(
        prompt=PROMPT, context=context, max_tokens=8, adapter_policy=AdapterPolicy.ADAPTER_POLICY_REQUIRE
    )
    async with CloningClient(aivo.cloning_server.address) as cloning, BrainClient(aivo.brain_server.address) as brain:
        started_at = time.perf_counter()
        started = await cloning.start(request)
        async with aclosing(cloning.watch(started.clone_id)) as changes:
            async for change in changes:
                last = change
        if last.status != "completed":
            raise RuntimeError(f"the clone of {request.student_id} ended as {last.status}")
        async with aclosing(brain.stream(question)) as messages:
            await anext(messages)
            seconds = time.perf_counter() - started_at
            async for message in messages:
                finished = message.finished
    if finished.adapter.student_id != request.student_id:
        raise RuntimeError("another adapter answered")
    return seconds
