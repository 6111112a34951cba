"""A cloning server on the real stores, with a trainer and a brain that do as a test says."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import cloning_service_pb2_grpc as pb_grpc
from aivo.cloning.v1 import student_model_service_pb2_grpc, student_service_pb2_grpc
from pydantic import SecretStr
from redis.asyncio import Redis
from transformers import AutoTokenizer

from cloning_server.app import open_server
from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.learning.passes import Passes
from cloning_server.settings import CloningSettings
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import AivoError
from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base
from mesh.rpc.errors import error_of
from mesh.sealing.master_keys import parse_keys
from mesh.sealing.sealing import Sealing
from mesh.tutoring.profile import StudentProfile
from mesh.valkey.connection import open_redis
from testing.models.small_models import write_small_llama
from testing.parts.stores import RedisEndpoint, S3Endpoint, valkey
from testing.scripted.brain import ScriptedBrain
from testing.scripted.trainer import ScriptedTrainer

STUDENT = "student123"
NAME = "Quentin-Marigold"
BUCKET = "test-cloning"
# Of every server here, as in `make up`.
MASTER_KEY = "5a" * 32
SEALING = Sealing(parse_keys([MASTER_KEY]))


class CloningStub:
    """The methods of all services of the cloning server, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        clones = pb_grpc.CloningServiceStub(channel)
        self.StartClone = clones.StartClone
        self.GetClone = clones.GetClone
        self.WatchClone = clones.WatchClone
        self.WatchClones = clones.WatchClones
        self.CancelClone = clones.CancelClone
        self.ListClones = clones.ListClones
        self.GetHealth = clones.GetHealth
        models = student_model_service_pb2_grpc.StudentModelServiceStub(channel)
        self.ListStudentModels = models.ListStudentModels
        self.ListOutdatedStudents = models.ListOutdatedStudents
        self.ActivateStudentModel = models.ActivateStudentModel
        self.PinStudentModel = models.PinStudentModel
        self.UnpinStudentModel = models.UnpinStudentModel
        students = student_service_pb2_grpc.StudentServiceStub(channel)
        self.DeleteStudent = students.DeleteStudent
        self.ExportStudent = students.ExportStudent


@dataclass(slots=True, kw_only=True)
class Cloning:
    """The parts of one test, and how to serve with them.

    Attributes:
        settings: What the next server reads.
        trainer: Its trainer.
        brain: Its brain; up unless the test stops it.
        adapters: Its adapter store.
        redis: A client of its clone store.
    """

    settings: CloningSettings
    trainer: ScriptedTrainer
    brain: ScriptedBrain
    adapters: AdapterStore
    redis: Redis

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[CloningStub]:
        """Runs a server until it is left, as a restart would have it: whatever runs then is cut off."""
        async with self.connect() as channel:
            yield CloningStub(channel)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[grpc.aio.Channel]:
        """As `serve`, for whoever calls other services too."""
        async with open_server(self.settings, trainer=self.trainer) as server:
            await server.start()
            # Not AIVO's own channel: its retries would hide what the server answers.
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                yield channel

    def set(self, **values: object) -> None:
        """Changes settings of the next server."""
        self.settings = self.settings.model_copy(update=values)

    async def stored(self) -> dict[str, bytes]:
        """Everything that this test has in the clone store, by key."""
        keys = [key async for key in self.redis.scan_iter(f"*aivo:{self.settings.tenant}}}*")]
        return {str(key): bytes(await self.redis.dump(key) or b"") for key in keys}


@pytest.fixture
def settings(s3_endpoint: S3Endpoint, redis_endpoint: RedisEndpoint) -> CloningSettings:
    """Settings with a tenant, hence keys, of this test alone."""
    return CloningSettings(
        cloning_port=0,
        cloning_metrics_port=0,
        drain_seconds=0,
        redis_url=redis_endpoint.url,
        s3_endpoint_url=s3_endpoint.url,
        s3_bucket=BUCKET,
        tenant=f"t{uuid.uuid4().hex}",
        master_key=SecretStr(MASTER_KEY),
        trainer_pause_seconds=0.01,
    )


@pytest.fixture(scope="package")
async def blobs(s3_endpoint: S3Endpoint) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True) as opened:
        yield opened


@pytest.fixture
def adapters(blobs: S3Blobs, settings: CloningSettings) -> AdapterStore:
    return AdapterStore(blobs, tenant=settings.tenant)


@pytest.fixture
async def redis(settings: CloningSettings) -> AsyncIterator[Redis]:
    async with open_redis(settings.redis_url) as client:
        yield client


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisEndpoint]:
    """A Valkey of this test alone, to be stopped."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    async with valkey(folder) as endpoint:
        yield endpoint


@pytest.fixture
def clones(redis: Redis, settings: CloningSettings) -> CloneStore:
    return CloneStore(redis, tenant=settings.tenant)


@pytest.fixture
def upkeep_store(redis: Redis, settings: CloningSettings) -> UpkeepStore:
    return UpkeepStore(redis, tenant=settings.tenant)


@pytest.fixture
def trainer() -> ScriptedTrainer:
    return ScriptedTrainer()


@pytest.fixture
async def brain(adapters: AdapterStore) -> AsyncIterator[ScriptedBrain]:
    scripted = ScriptedBrain(adapters)
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
def cloning(
    settings: CloningSettings, trainer: ScriptedTrainer, brain: ScriptedBrain, adapters: AdapterStore, redis: Redis
) -> Cloning:
    settings = settings.model_copy(update={"brain_address": brain.address})
    return Cloning(settings=settings, trainer=trainer, brain=brain, adapters=adapters, redis=redis)


@pytest.fixture
async def stub(cloning: Cloning) -> AsyncIterator[CloningStub]:
    """A client of a running server."""
    async with cloning.serve() as client:
        yield client


def order(student_id: str = STUDENT, *, request_id: str = "", responses: int = 4) -> pb.StartCloneRequest:
    """A request for a clone of a student who has a name."""
    return pb.StartCloneRequest(
        student_id=student_id,
        student_profile=pb.StudentProfile(name=NAME, grade="5", disability="adhd", learning_style="visual"),
        baseline_data=pb.BaselineData(
            assessment_id="baseline_001",
            responses=[
                pb.BaselineResponse(question=f"What is {n} + {n}?", student_answer=str(2 * n), skill="adding")
                for n in range(responses)
            ],
            overall_score=75.5,
        ),
        request_id=request_id,
    )


async def start_clone(stub: CloningStub, student_id: str = STUDENT) -> str:
    """Starts a clone; returns its id."""
    return (await stub.StartClone(order(student_id))).clone_id


def baseline(responses: int = 4) -> Baseline:
    """A baseline as the domain has it."""
    return Baseline(
        profile=StudentProfile(grade="5"),
        responses=tuple(
            BaselineResponse(question=f"What is {n} + {n}?", student_answer=str(2 * n)) for n in range(responses)
        ),
    )


async def watch(
    stub: CloningStub, clone_id: str, *, after_sequence: int | None = None
) -> AsyncIterator[pb.WatchCloneResponse]:
    """The changes of a clone, without signs of life."""
    async for change in stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id, after_sequence=after_sequence)):
        if not change.heartbeat:
            yield change


async def watch_all(stub: CloningStub, clone_id: str, *, after_sequence: int | None = 0) -> list[pb.WatchCloneResponse]:
    """Every change of a clone until its last."""
    return [change async for change in watch(stub, clone_id, after_sequence=after_sequence)]


async def until(stub: CloningStub, clone_id: str, status: str) -> pb.WatchCloneResponse:
    """Returns once the clone is there."""
    async for change in watch(stub, clone_id):
        if change.status == status:
            return change
    raise AssertionError(f"{clone_id} ended without being {status}")


@dataclass(slots=True)
class Raised:
    """What the calls inside `raised` failed with, once they have."""

    _caught: pytest.ExceptionInfo[grpc.aio.AioRpcError]

    @property
    def error(self) -> AivoError:
        """As the server raised it."""
        return error_of(self._caught.value)

    @property
    def code(self) -> grpc.StatusCode:
        """What gRPC says of it."""
        return self._caught.value.code()


@contextmanager
def raised() -> Iterator[Raised]:
    """Expects the calls inside to fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield Raised(caught)


@pytest.fixture(scope="package")
def cache_dir() -> Path:
    return Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models"))


@pytest.fixture(scope="package")
def base(cache_dir: Path) -> BaseModel:
    """The real default base model; tests that train on it do not change it."""
    return load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu")


@pytest.fixture(scope="package")
def passes(base: BaseModel) -> Passes:
    return Passes(base.model)


@pytest.fixture(scope="package")
def small_folder(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base model with two small random layers and the default model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, cache_dir).path)
    return write_small_llama(tmp_path_factory.mktemp("small") / "small-llama", tokenizer)


@pytest.fixture(scope="package")
def small_base(small_folder: Path) -> BaseModel:
    """That model in fp32, in which a training takes a second."""
    return load_base(str(small_folder), cache_dir=small_folder.parent, device="cpu", dtype="float32")


@pytest.fixture(scope="package")
def small_passes(small_base: BaseModel) -> Passes:
    return Passes(small_base.model)


@pytest.fixture(scope="package")
def precise(cache_dir: Path) -> BaseModel:
    """The real default base model in fp32, whatever this machine prefers."""
    return load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype="float32")


@pytest.fixture(scope="package")
def precise_passes(precise: BaseModel) -> Passes:
    return Passes(precise.model)


@pytest.fixture
def repacking_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has bitsandbytes repack 4-bit weights for inference, as it does on a CPU with AVX512-BF16, on any machine."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
