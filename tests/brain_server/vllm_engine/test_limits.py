"""What stops decoding on vLLM, what the engine refuses, and outages. Uses a real vLLM and the real store."""

import asyncio
import time
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
import safetensors.torch
from aivo.brain.v1 import brain_service_pb2 as pb
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from google.protobuf.json_format import ParseDict

from brain_server.app import open_server
from brain_server.engine.contract import Fallback, Tier, complete
from brain_server.engine.settings import EngineSettings
from brain_server.settings import BrainSettings
from brain_server.vllm_engine.engine import VllmEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterIncompatible, DeadlineExceeded, ModelNotLoaded, QueueFull, ServerDraining
from mesh.lm.lora import to_safetensors
from mesh.main_brain.base import BaseModel
from testing.adapters import publish
from testing.models.random_adapters import publish_unchecked, random_weights, recipe
from testing.parts.stores import S3Endpoint
from testing.parts.vllm_server import MAX_RANK, MAX_SEQS, VllmServer
from testing.waiting import until, until_ready
from tests.brain_server.vllm_engine.requests import BUCKET, greedy, recipe_of

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    # The generated code has it for type checkers alone.
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub

ASSESSMENT = {
    "student_response": "Plants make food from sunlight",
    "criteria": {"subject": "Science", "grade": "5", "learning_objective": "Understand photosynthesis"},
}


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


class TestThroughTheServer:
    async def test_a_brain_on_vllm_answers_a_student_and_assesses_an_answer(
        self, settings: EngineSettings, s3_endpoint: S3Endpoint, students: dict[str, bytes], tmp_path: Path
    ) -> None:
        own_settings = settings.model_dump() | {"vllm_adapter_dir": tmp_path, "s3_endpoint_url": s3_endpoint.url}
        own_settings |= {"s3_bucket": BUCKET, "brain_port": 0, "brain_metrics_port": 0, "drain_seconds": 1}
        async with open_server(BrainSettings.model_validate(own_settings)) as server:
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub: BrainServiceAsyncStub = BrainServiceStub(channel)

                async def is_healthy() -> bool:
                    return (await stub.GetHealth(pb.GetHealthRequest())).status == "healthy"

                await until(is_healthy, seconds=30)
                request = {"prompt": "What is rain?", "context": {"student_id": "ada"}, "max_tokens": 4}
                reply = await stub.Generate(ParseDict(request, pb.GenerateRequest()))
                assert (reply.adapter.student_id, reply.usage.completion_tokens) == ("ada", 4)
                verdict = await stub.Assess(ParseDict(ASSESSMENT, pb.AssessRequest()))
                assert 0 <= verdict.correctness <= 100
                assert verdict.feedback


class TestStopping:
    async def test_vllm_stops_decoding_when_the_stream_is_closed(
        self, engine: VllmEngine, server: VllmServer, students: dict[str, bytes]
    ) -> None:
        async with aclosing(engine.stream(greedy("ada", max_tokens=900))) as events:
            await anext(events)
            await server.until_running(1)
        await server.until_running(0)
        assert engine.counts.running == 0
        assert [
            residency.leases for residency in engine.residencies() if residency.adapter.ref.student_id == "ada"
        ] == [0]

    async def test_vllm_stops_decoding_when_the_deadline_passes(self, engine: VllmEngine, server: VllmServer) -> None:
        with pytest.raises(DeadlineExceeded):
            await complete(engine, greedy(max_tokens=900, deadline=time.monotonic() + 1))
        await server.until_running(0)

    async def test_more_than_the_queue_holds_is_refused_at_once(self, engine: VllmEngine, server: VllmServer) -> None:
        async with AsyncExitStack() as stack:
            for _ in range(MAX_SEQS):
                events = await stack.enter_async_context(aclosing(engine.stream(greedy(max_tokens=900))))
                await anext(events)
            waiting_calls = [asyncio.create_task(complete(engine, greedy(max_tokens=900))) for _ in range(2)]
            stack.callback(lambda: [task.cancel() for task in waiting_calls])
            await server.until_running(MAX_SEQS + 2)
            with pytest.raises(QueueFull) as caught:
                await complete(engine, greedy())
            assert caught.value.retry_seconds > 0
            assert (engine.counts.running, engine.counts.waiting) == (MAX_SEQS, 2)
        await asyncio.gather(*waiting_calls, return_exceptions=True)
        await server.until_running(0)


class TestAdapters:
    async def test_an_adapter_that_does_not_fit_fails_alone(
        self,
        engine: VllmEngine,
        adapter_store: AdapterStore,
        blobs: S3Blobs,
        reference: BaseModel,
        students: dict[str, bytes],
    ) -> None:
        before = await complete(engine, greedy("ada", max_tokens=4))
        rank = 2 * MAX_RANK
        too_large = random_weights(7, rank=rank)
        await publish(adapter_store, "rank-too-high", too_large, recipe=recipe_of(reference, rank=rank))
        narrow = to_safetensors(
            {
                name: (weight[:, :-64] if name.endswith("A.weight") else weight).contiguous()
                for name, weight in safetensors.torch.load(random_weights(8)).items()
            }
        )
        await publish(adapter_store, "too-narrow", narrow, recipe=recipe_of(reference))
        await publish_unchecked(blobs, "other-base", random_weights(9), recipe=recipe(base_digest="0" * 64))
        for student in ("rank-too-high", "too-narrow"):
            with pytest.raises(AdapterIncompatible):
                await complete(engine, greedy(student, max_tokens=4))
        assert (await complete(engine, greedy("other-base", max_tokens=4))).fallback is Fallback.OUTDATED
        with pytest.raises(AdapterIncompatible):
            await engine.warm("other-base")
        assert (await complete(engine, greedy("ada", max_tokens=4))).text == before.text
        assert engine.facts.ready

    async def test_warming_loads_an_adapter_under_its_sha256_and_evicting_unloads_it(
        self,
        engine: VllmEngine,
        server: VllmServer,
        adapter_store: AdapterStore,
        reference: BaseModel,
    ) -> None:
        student_id = "warmed"
        manifest = await publish(adapter_store, student_id, random_weights(5), recipe=recipe_of(reference))
        warmed = await engine.warm(student_id)
        assert (warmed.adapter.sha256, warmed.bytes, warmed.probe_tokens) == (manifest.sha256, manifest.size_bytes, 4)
        assert [residency.tier for residency in engine.residencies() if residency.adapter == warmed.adapter] == [
            Tier.SLOT
        ]
        assert any(name.startswith(manifest.sha256) for name in await server.adapters())

        assert await engine.evict(student_id) == [warmed.adapter]
        assert not any(name.startswith(manifest.sha256) for name in await server.adapters())
        assert (await complete(engine, greedy(student_id, max_tokens=2))).adapter == warmed.adapter


class TestOutages:
    async def test_a_restarted_brain_removes_the_adapters_that_the_last_one_left(
        self,
        server: VllmServer,
        settings: EngineSettings,
        adapter_store: AdapterStore,
        students: dict[str, bytes],
        tmp_path: Path,
    ) -> None:
        own_settings = settings.model_copy(update={"vllm_adapter_dir": tmp_path})
        for _ in range(2):
            async with VllmEngine.open(own_settings, adapter_store) as brain:
                await until_ready(brain)
                (blank,) = names_in(tmp_path)
                await complete(brain, greedy("ben", max_tokens=1))
                assert {blank} < set(names_in(tmp_path)) <= set(await server.adapters())
        with pytest.raises(ServerDraining):
            await complete(brain, greedy())

    async def test_a_vllm_of_another_base_model_is_not_used(
        self, settings: EngineSettings, adapter_store: AdapterStore, server: VllmServer, tmp_path: Path
    ) -> None:
        other_settings = settings.model_copy(update={"base_model": str(settings.model_cache_dir / settings.base_model)})
        async with VllmEngine.open(other_settings, adapter_store) as brain:

            async def has_answered() -> bool:
                return brain.facts.reason.startswith("vLLM serves")

            await until(has_answered, seconds=30)
            with pytest.raises(ModelNotLoaded, match="vLLM serves"):
                await complete(brain, greedy())

    async def test_students_keep_their_adapters_when_vllm_is_restarted(
        self, engine: VllmEngine, server: VllmServer, students: dict[str, bytes]
    ) -> None:
        before = await complete(engine, greedy("cleo"))
        async with aclosing(engine.stream(greedy("cleo", max_tokens=900))) as events:
            await anext(events)
            await server.part.kill()
            with pytest.raises(ModelNotLoaded):
                async for _ in events:
                    pass
        await until_ready(engine, ready=False)
        with pytest.raises(ModelNotLoaded):
            await complete(engine, greedy("cleo"))
        await server.start()
        await until_ready(engine)
        after = await asyncio.gather(*(complete(engine, greedy("cleo")) for _ in range(2)))
        assert [(reply.text, reply.adapter) for reply in after] == [(before.text, before.adapter)] * 2
