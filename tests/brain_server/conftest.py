"""The real base model in fp32, its tokenizer, and an engine on the real store; shared by all tests here."""

import gc
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.engine import TorchEngine
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.main_brain.base import BaseModel, load_base
from mesh.main_brain.files import MainBrainFiles, fetch_main_brain
from testing.models.small_models import write_small_llama
from testing.parts.stores import S3Endpoint
from testing.waiting import until_loaded


@pytest.fixture(autouse=True, scope="module")
def closed_engines_freed() -> Iterator[None]:
    """Frees the engines of a file: each holds up to two gigabytes, in cycles that may not be collected for long."""
    yield
    gc.collect()


@pytest.fixture(scope="package")
def files() -> MainBrainFiles:
    return fetch_main_brain(DEFAULT_BASE_MODEL, Path(os.environ.get("MODEL_CACHE_DIR", ".aivo/models")))


@pytest.fixture(scope="package")
def tokenizer(files: MainBrainFiles) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.path)
    return tokenizer


@pytest.fixture(scope="package")
def small_llama(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a base model that computes almost nothing, for tests of many requests whose texts do not matter."""
    return write_small_llama(tmp_path_factory.mktemp("small") / "small-llama", tokenizer)


@pytest.fixture(scope="package")
def reference(files: MainBrainFiles) -> BaseModel:
    """A second copy of the base model for plain transformers and PEFT, to compare with."""
    return load_base(files.name, cache_dir=files.path.parent, device="cpu", dtype="float32")


@pytest.fixture(scope="package")
def engine_settings(files: MainBrainFiles) -> EngineSettings:
    """fp32, for exact comparisons; a small batch and a short queue, so that they can be filled."""
    return EngineSettings(
        model_cache_dir=files.path.parent,
        device="cpu",
        dtype="float32",
        queue_limit=2,
        anonymous_limit=6,
        max_batch=4,
        adapter_slots=4,
        kv_cache_bytes=256 * 1024 * 1024,
        adapter_pointer_ttl_seconds=60,
    )


@pytest.fixture(scope="package")
async def blobs(s3_endpoint: S3Endpoint) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket="test-brain", endpoint_url=s3_endpoint.url, create_bucket=True) as s3_blobs:
        yield s3_blobs


@pytest.fixture(scope="package")
def adapter_store(blobs: S3Blobs) -> AdapterStore:
    return AdapterStore(blobs)


@pytest.fixture(scope="package")
async def torch_engine(engine_settings: EngineSettings, adapter_store: AdapterStore) -> AsyncIterator[TorchEngine]:
    async with TorchEngine.open(engine_settings, adapter_store) as engine:
        facts = await until_loaded(engine)
        assert facts.ready, facts.reason
        yield engine


@pytest.fixture(scope="package")
async def narrow_engine(engine_settings: EngineSettings, adapter_store: AdapterStore) -> AsyncIterator[TorchEngine]:
    """An engine with one row, behind which two requests may wait."""
    settings = engine_settings.model_copy(update={"max_batch": 1, "adapter_slots": 1})
    async with TorchEngine.open(settings, adapter_store) as engine:
        facts = await until_loaded(engine)
        assert facts.ready, facts.reason
        yield engine


@pytest.fixture
def student_id() -> str:
    """A student that no other test uses."""
    return f"student-{uuid.uuid4().hex[:12]}"
