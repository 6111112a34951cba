"""Calls that name no student leave places for students, through a real server with a real engine."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from grpc.aio import AioRpcError

from brain_server.app import open_server
from brain_server.settings import BrainSettings
from mesh.adapters.s3 import S3Blobs
from mesh.errors import QueueFull
from mesh.rpc.channels import open_channel
from mesh.rpc.errors import error_of
from testing.parts.stores import S3Endpoint
from testing.waiting import until

if TYPE_CHECKING:
    # The generated code has this for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

BUCKET = "test-anonymous"
PROMPT = "Why is the sky blue?"


@pytest.fixture
async def brain(s3_endpoint: S3Endpoint, small_llama: Path) -> AsyncIterator["BrainServiceAsyncStub"]:
    """A brain with four places, hence one for calls without a student."""
    settings = BrainSettings(
        base_model=str(small_llama), model_cache_dir=small_llama.parent, device="cpu", dtype="float32",
        brain_port=0, brain_metrics_port=0, s3_bucket=BUCKET, s3_endpoint_url=s3_endpoint.url,
        safety="off", max_batch=1, adapter_slots=1, queue_limit=3, kv_cache_bytes=16 << 20,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True))
        server = await stack.enter_async_context(open_server(settings))
        await server.start()
        stub = BrainServiceStub(await stack.enter_async_context(open_channel(f"127.0.0.1:{server.port}")))

        async def is_loaded() -> bool:
            return (await stub.GetHealth(pb.GetHealthRequest())).model_loaded

        await until(is_loaded, seconds=60)
        yield stub


async def test_calls_without_a_student_and_assessments_leave_places_for_students(
    brain: "BrainServiceAsyncStub",
) -> None:
    call = brain.GenerateStream(pb.GenerateStreamRequest(prompt=PROMPT, max_tokens=1024))
    assert (await anext(aiter(call))).text

    criteria = pb.AssessmentCriteria(learning_objective="Understand why")
    for refused in (
        brain.Generate(pb.GenerateRequest(prompt=PROMPT)),
        brain.Assess(pb.AssessRequest(student_response="Air scatters light", criteria=criteria)),
    ):
        with pytest.raises(AioRpcError) as caught:
            await refused
        error = error_of(caught.value)
        assert isinstance(error, QueueFull)
        assert (str(error).partition(",")[0], error.facts) == ("calls that name no student", {"limit": "1"})

    ada = brain.Generate(pb.GenerateRequest(prompt=PROMPT, max_tokens=2, context=pb.StudentContext(student_id="ada")))
    call.cancel()
    assert (await ada).usage.completion_tokens > 0
