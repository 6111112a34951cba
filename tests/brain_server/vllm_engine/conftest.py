"""A real vLLM server with the real base model, an engine on it, and the real store; shared by the tests here."""

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from brain_server.engine.settings import EngineSettings
from brain_server.vllm_engine.engine import VllmEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.files import MainBrainFiles, fetch_main_brain
from testing.adapters import publish
from testing.models.random_adapters import random_weights
from testing.parts.stores import S3Endpoint
from testing.parts.vllm_server import MAX_SEQS, PYTHON, VllmServer, vllm
from testing.waiting import until_ready
from tests.brain_server.vllm_engine.requests import BUCKET, recipe_of


@pytest.fixture(scope="package")
def files() -> MainBrainFiles:
    return fetch_main_brain(DEFAULT_BASE_MODEL, Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models")))


@pytest.fixture(scope="package")
async def server(tmp_path_factory: pytest.TempPathFactory, files: MainBrainFiles) -> AsyncIterator[VllmServer]:
    if not PYTHON.exists():
        pytest.skip("vLLM has a venv of its own, which is absent: `make test-vllm` makes it and runs these tests")
    async with vllm(tmp_path_factory.mktemp("vllm"), files) as server:
        yield server


@pytest.fixture(scope="package")
def reference(files: MainBrainFiles) -> BaseModel:
    """A copy of the base model for plain transformers and PEFT, to compare with."""
    return load_base(files.name, cache_dir=files.path.parent, device="cpu", dtype="float32")


@pytest.fixture(scope="package")
async def blobs(s3_endpoint: S3Endpoint) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        yield blobs


@pytest.fixture(scope="package")
def adapter_store(blobs: S3Blobs) -> AdapterStore:
    return AdapterStore(blobs)


@pytest.fixture(scope="package")
def settings(server: VllmServer, files: MainBrainFiles, tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    """Two requests may wait beside those that vLLM decodes."""
    return EngineSettings(
        engine="vllm",
        vllm_url=server.url,
        vllm_adapter_dir=tmp_path_factory.mktemp("adapters"),
        model_cache_dir=files.path.parent,
        max_batch=MAX_SEQS,
        queue_limit=2,
        anonymous_limit=MAX_SEQS + 2,
        adapter_pointer_ttl_seconds=60,
    )


@pytest.fixture(scope="package")
async def engine(settings: EngineSettings, adapter_store: AdapterStore) -> AsyncIterator[VllmEngine]:
    async with VllmEngine.open(settings, adapter_store) as engine:
        await until_ready(engine)
        yield engine


@pytest.fixture(scope="package")
async def students(adapter_store: AdapterStore, reference: BaseModel) -> dict[str, bytes]:
    """Publishes adapters of three students, more than vLLM has slots. Returns their weights by student."""
    weights = {student: random_weights(seed, strength=0.1) for seed, student in enumerate(("ada", "ben", "cleo"))}
    for student, data in weights.items():
        await publish(adapter_store, student, data, recipe=recipe_of(reference))
    return weights


@pytest.fixture
def student_id() -> str:
    """A student that no other test uses."""
    return f"student-{uuid.uuid4().hex[:12]}"
