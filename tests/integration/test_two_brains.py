"""Two brains on one store: after a student is deleted, neither decodes with the student's adapter any more."""

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from aivo.brain.v1 import adapter_service_pb2, brain_service_pb2
from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceStub
from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceStub
from aivo.cloning.v1 import student_service_pb2
from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.asyncio import Redis
from transformers import AutoTokenizer

import brain_server.app
import cloning_server.app
from brain_server.settings import BrainSettings
from cloning_server.settings import CloningSettings
from mesh.adapters.notices import channel_of
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError, ModelVersionNotFound
from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base
from mesh.rpc.errors import error_of
from testing.adapters import publish
from testing.models.random_adapters import Widths, random_weights, recipe
from testing.models.small_models import write_small_llama
from testing.parts.stores import RedisEndpoint, S3Endpoint
from testing.scripted.trainer import ScriptedTrainer
from testing.waiting import until

if TYPE_CHECKING:
    # The generated code has them for type checkers alone.
    from aivo.brain.v1.adapter_service_pb2_grpc import AdapterServiceAsyncStub
    from aivo.brain.v1.brain_service_pb2_grpc import BrainServiceAsyncStub
    from aivo.cloning.v1.student_service_pb2_grpc import StudentServiceAsyncStub

STUDENT = "ada"
# Longer than any test: what a brain has read never expires, so only a notice can tell it.
HOUR_SECONDS = 3600.0
SHORT_SECONDS = 0.2
WAIT_SECONDS = 60
FORGOTTEN = (ModelVersionNotFound.reason, brain_service_pb2.FALLBACK_REASON_NO_STUDENT_MODEL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBrain:
    """A brain that serves."""

    address: str
    stub: "BrainServiceAsyncStub"
    adapters: "AdapterServiceAsyncStub"

    async def decodes_with(self, *, version: int | None) -> tuple[int, str]:
        """Returns the version of the student's model that a reply was decoded with, and its text."""
        reply = await self.stub.Generate(_request(version=version))
        return reply.adapter.version, reply.response

    async def refusal_and_fallback(self) -> tuple[str, int] | None:
        """Returns why version 1 is refused and why the base model answers; None while either uses the adapter."""
        try:
            await self.stub.Generate(_request(version=1))
        except grpc.aio.AioRpcError as rpc_error:
            error = error_of(rpc_error)
            assert isinstance(error, AivoError)
            reply = await self.stub.Generate(_request(version=None))
            return (error.reason, reply.fallback) if reply.HasField("fallback") else None
        return None

    async def students_in_memory(self) -> set[str]:
        listed = await self.adapters.ListAdapters(adapter_service_pb2.ListAdaptersRequest())
        return {residency.adapter.student_id for residency in listed.adapters}


@dataclass(slots=True, kw_only=True)
class District:
    """One store, one Valkey, one tenant; a cloning server that calls the first brain that was added.

    Attributes:
        store: Its adapter store, in which a student has a model.
        brains: Its brains.
    """

    stack: AsyncExitStack
    s3_url: str
    redis_url: str
    bucket: str
    base_model: Path
    store: AdapterStore
    tenant: str = field(default_factory=lambda: f"t{uuid.uuid4().hex}")
    brains: list[ServedBrain] = field(default_factory=list)

    async def add_brain(self, *, listens: bool, trust_seconds: float) -> ServedBrain:
        """Starts a brain that trusts what it has read for this long, and has it decode with the student's model."""
        settings = BrainSettings(
            base_model=str(self.base_model),
            model_cache_dir=self.base_model.parent,
            device="cpu",
            dtype="float32",
            brain_port=0,
            brain_metrics_port=0,
            max_batch=2,
            adapter_slots=2,
            kv_cache_bytes=8 << 20,
            safety="off",
            redis_url=self.redis_url if listens else None,
            s3_endpoint_url=self.s3_url,
            s3_bucket=self.bucket,
            tenant=self.tenant,
            adapter_pointer_ttl_seconds=trust_seconds,
            adapter_outage_seconds=trust_seconds,
        )
        server = await self.stack.enter_async_context(brain_server.app.open_server(settings))
        await server.start()
        channel = await self._connect(server.port)
        await _wait_serving(channel)
        brain = ServedBrain(
            address=f"127.0.0.1:{server.port}", stub=BrainServiceStub(channel), adapters=AdapterServiceStub(channel)
        )
        for version in (None, 1):
            assert (await brain.decodes_with(version=version))[0] == 1
        self.brains.append(brain)
        return brain

    async def wait_listening(self, count: int) -> None:
        """Returns once this many brains listen for notices."""
        async with Redis.from_url(self.redis_url) as redis:

            async def all_listen() -> bool:
                ((_, listening),) = await redis.pubsub_numsub(channel_of(self.tenant))
                return bool(listening == count)

            await until(all_listen, seconds=WAIT_SECONDS)

    async def delete_student(self) -> student_service_pb2.DeleteStudentResponse:
        settings = CloningSettings(
            cloning_port=0,
            cloning_metrics_port=0,
            drain_seconds=0,
            redis_url=self.redis_url,
            s3_endpoint_url=self.s3_url,
            s3_bucket=self.bucket,
            tenant=self.tenant,
            brain_address=self.brains[0].address,
        )
        server = await self.stack.enter_async_context(
            cloning_server.app.open_server(settings, trainer=ScriptedTrainer())
        )
        await server.start()
        stub: StudentServiceAsyncStub = StudentServiceStub(await self._connect(server.port))
        return await stub.DeleteStudent(student_service_pb2.DeleteStudentRequest(student_id=STUDENT))

    async def _connect(self, port: int | None) -> grpc.aio.Channel:
        return await self.stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))


@pytest.fixture(scope="module")
def small_llama(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, models).path)
    return write_small_llama(tmp_path_factory.mktemp("small") / "small-llama", tokenizer)


@pytest.fixture(scope="module")
def base(small_llama: Path) -> BaseModel:
    return load_base(str(small_llama), cache_dir=small_llama.parent, device="cpu", dtype="float32")


@pytest.fixture
async def district(
    s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint, bucket: str, small_llama: Path, base: BaseModel
) -> AsyncIterator[District]:
    async with AsyncExitStack() as stack:
        blobs = S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True)
        tenant = f"t{uuid.uuid4().hex}"
        store = AdapterStore(await stack.enter_async_context(blobs), tenant=tenant)
        weights = random_weights(1, widths=Widths.of(base.model.config))
        await publish(store, STUDENT, weights, recipe=recipe(base_digest=base.digest))
        yield District(
            stack=stack,
            s3_url=s3_endpoint.url,
            redis_url=redis_endpoint.url,
            bucket=bucket,
            base_model=small_llama,
            store=store,
            tenant=tenant,
        )


async def test_a_notice_makes_every_brain_forget_before_the_receipt_is_written(district: District) -> None:
    called, other = [await district.add_brain(listens=True, trust_seconds=HOUR_SECONDS) for _ in range(2)]
    await district.wait_listening(2)

    receipt = (await district.delete_student()).brain

    assert (receipt.reached, receipt.adapters, receipt.listening, receipt.confirmed) == (True, 2, 2, 2)
    for brain in (called, other):
        assert await brain.refusal_and_fallback() == FORGOTTEN
        assert await brain.students_in_memory() == set()


async def test_a_brain_that_hears_no_notice_forgets_when_what_it_has_read_expires(district: District) -> None:
    await district.add_brain(listens=True, trust_seconds=HOUR_SECONDS)
    deaf = await district.add_brain(listens=False, trust_seconds=SHORT_SECONDS)
    await district.wait_listening(1)

    response = await district.delete_student()

    receipt = response.brain
    assert (receipt.listening, receipt.confirmed) == (1, 1), "only those that can hear are counted"
    assert receipt.forget_time.ToDatetime() > response.delete_time.ToDatetime()

    async def has_forgotten() -> bool:
        return await deaf.refusal_and_fallback() == FORGOTTEN

    await until(has_forgotten, seconds=WAIT_SECONDS)
    assert await deaf.students_in_memory() == set()


async def test_a_student_who_comes_back_is_answered_with_the_new_model(district: District, base: BaseModel) -> None:
    called, other = [await district.add_brain(listens=True, trust_seconds=HOUR_SECONDS) for _ in range(2)]
    await district.wait_listening(2)
    before = await other.decodes_with(version=1)
    await district.delete_student()
    weights = random_weights(2, widths=Widths.of(base.model.config))
    await publish(district.store, STUDENT, weights, recipe=recipe(base_digest=base.digest))

    after = [await brain.decodes_with(version=version) for brain in (called, other) for version in (1, None)]

    assert {version for version, _ in after} == {1}, "the number is used again"
    assert len({text for _, text in after}) == 1
    assert before not in after


def _request(*, version: int | None) -> brain_service_pb2.GenerateRequest:
    return brain_service_pb2.GenerateRequest(
        prompt="Why is the sky blue?",
        context=brain_service_pb2.StudentContext(student_id=STUDENT),
        adapter_version=version,
        temperature=0,
        max_tokens=8,
    )


async def _wait_serving(channel: grpc.aio.Channel) -> None:
    """Returns once the base model is loaded."""
    request = health_pb2.HealthCheckRequest(service=brain_server.app.BRAIN_SERVICE)
    async for message in health_pb2_grpc.HealthStub(channel).Watch(request):
        if message.status == health_pb2.HealthCheckResponse.SERVING:
            return
