"""Calls of students without a model leave places for the others, through a real server with a real engine."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from grpc.aio import AioRpcError
from transformers import AutoConfig

from brain_server.adapters.choice import AdapterChoice
from brain_server.adapters.reply_stream import DecodingSummary
from brain_server.app import open_server
from brain_server.engine.contract import Generation
from brain_server.engine.deadline import Allowance
from brain_server.settings import BrainSettings
from brain_server.torch_engine.compute.slot_layout import SlotWeights
from brain_server.torch_engine.reply_decoder import PreparedPrompt, TorchReplyDecoder
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import QueueFull
from mesh.main_brain.base import load_base
from mesh.rpc.channels import open_channel
from mesh.rpc.errors import error_of
from testing.adapters import publish
from testing.models.random_adapters import Widths, random_weights, recipe
from testing.parts.stores import S3Endpoint
from testing.waiting import until

if TYPE_CHECKING:
    # The generated code has this for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub


@pytest.fixture
async def store(s3_endpoint: S3Endpoint, bucket: str, small_llama: Path) -> AdapterStore:
    """A store in which ada alone has a model."""
    base = load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")
    weights = random_weights(1, widths=Widths.of(AutoConfig.from_pretrained(small_llama)))
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        store = AdapterStore(blobs)
        await publish(store, "ada", weights, recipe=recipe(base_digest=base.digest))
    return store


@pytest.fixture
def endless_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies to invented students send a word and then go on until they are cancelled; the model decodes ada's."""
    decode = TorchReplyDecoder.decode

    async def decode_without_end(
        self: TorchReplyDecoder,
        generation: Generation,
        prepared: PreparedPrompt,
        choice: AdapterChoice[SlotWeights],
        allowance: Allowance,
    ) -> AsyncGenerator[str | DecodingSummary, None]:
        if generation.student_id != "ada":
            yield "Because"
            await asyncio.Event().wait()
        async with aclosing(decode(self, generation, prepared, choice, allowance)) as events:
            async for event in events:
                yield event

    monkeypatch.setattr(TorchReplyDecoder, "decode", decode_without_end)


@pytest.mark.usefixtures("store", "endless_replies")
async def test_invented_students_leave_places_for_a_student_with_a_model(
    s3_endpoint: S3Endpoint, bucket: str, small_llama: Path
) -> None:
    settings = BrainSettings(
        base_model=str(small_llama), model_cache_dir=small_llama.parent, device="cpu", dtype="float32",
        brain_port=0, brain_metrics_port=0, s3_bucket=bucket, s3_endpoint_url=s3_endpoint.url,
        safety="off", max_batch=3, adapter_slots=3, queue_limit=1, kv_cache_bytes=48 << 20, adapter_choice_seconds=60,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_server(settings))
        await server.start()
        stub: BrainServiceAsyncStub = BrainServiceStub(
            await stack.enter_async_context(open_channel(f"127.0.0.1:{server.port}"))
        )

        async def is_loaded() -> bool:
            return (await stub.GetHealth(pb.GetHealthRequest())).model_loaded

        await until(is_loaded, seconds=60)

        # Of four places, two are for students without a model.
        streams = [stub.GenerateStream(question_of(f"invented-{number}")) for number in range(2)]
        for stream in streams:
            assert (await anext(aiter(stream))).text == "Because"
        for policy in (pb.ADAPTER_POLICY_PREFER, pb.ADAPTER_POLICY_BASE_ONLY):
            with pytest.raises(AioRpcError) as caught:
                await anext(aiter(stub.GenerateStream(question_of("invented-2", policy=policy))))
            error = error_of(caught.value)
            assert isinstance(error, QueueFull)
            assert (str(error), error.facts) == (
                "students without a model may have 2 calls at a time; try again later", {"limit": "2"}
            )  # fmt: skip
            assert error.retry_seconds > 0

        *_, last = [message async for message in stub.GenerateStream(question_of("ada"))]
        assert last.finished.adapter.student_id == "ada"
        for stream in streams:
            assert not stream.done()
            stream.cancel()


def question_of(
    student_id: str, *, policy: pb.AdapterPolicy.ValueType = pb.ADAPTER_POLICY_PREFER
) -> pb.GenerateStreamRequest:
    return pb.GenerateStreamRequest(
        prompt="Why is the sky blue?",
        context=pb.StudentContext(student_id=student_id),
        max_tokens=2,
        adapter_policy=policy,
    )
