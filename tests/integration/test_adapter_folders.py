"""A version in S3, from training to PEFT: the folder loads as it is, and computes what AIVO serves.

On a small random base model, with the real trainer, store and engine.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from boto3.session import Session
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from brain_server.engine.contract import Generation, Sampling, complete
from brain_server.engine.settings import EngineSettings
from brain_server.torch_engine.compute.decoder import Decoder
from brain_server.torch_engine.compute.slot_tables import SlotTables
from brain_server.torch_engine.engine import TorchEngine
from cloning_server.learning.passes import Passes
from cloning_server.training import TrainedAdapter
from mesh.adapters.ref import AdapterRef
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.lm.base_files import fetch
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.lora import LoraSpec, from_safetensors
from mesh.main_brain.base import BaseModel, load_base
from testing.adapters import publish, write_bare_version
from testing.lessons import PROFILE, commented, plan_of
from testing.models.mixed_steps import logits_of_rows
from testing.models.small_models import write_small_llama
from testing.parts.stores import S3Endpoint
from testing.trainings import train_alone
from testing.waiting import until_loaded

if TYPE_CHECKING:
    # Types alone; boto3 makes its clients at run time.
    from mypy_boto3_s3 import S3Client

BUCKET = "adapter-folders"
# Not what training used, so that a description without it is found out.
SCALE = 0.5
ATOL = 1e-4
TOKENS = [[5, 17, 230, 4, 99, 301, 12, 64, 8, 150]]


@pytest.fixture(scope="module")
def base_folder(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(fetch(DEFAULT_BASE_MODEL, models).path)
    return write_small_llama(tmp_path_factory.mktemp("small") / "small-llama", tokenizer)


@pytest.fixture(scope="module")
def base(base_folder: Path) -> BaseModel:
    return load_base(str(base_folder), cache_dir=base_folder.parent, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def trained(base: BaseModel) -> TrainedAdapter:
    adapter = train_alone(plan_of(commented(5), epochs=3), base, Passes(base.model)).adapter
    return replace(adapter, recipe=replace(adapter.recipe, scale=SCALE))


@pytest.fixture(scope="module")
async def blobs(s3_endpoint: S3Endpoint) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket=BUCKET, endpoint_url=s3_endpoint.url, create_bucket=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def store(blobs: S3Blobs) -> AdapterStore:
    return AdapterStore(blobs)


@pytest.fixture(scope="module")
async def engine(base_folder: Path, store: AdapterStore) -> AsyncIterator[TorchEngine]:
    settings = EngineSettings(
        base_model=str(base_folder), model_cache_dir=base_folder.parent, device="cpu", dtype="float32", max_batch=1,
        adapter_slots=1, kv_cache_bytes=16 * 1024 * 1024,
    )  # fmt: skip
    async with TorchEngine.open(settings, store) as opened:
        facts = await until_loaded(opened)
        assert facts.ready, facts.reason
        yield opened


async def test_a_folder_from_s3_loads_with_peft_as_it_is_and_computes_what_serves(
    s3_endpoint: S3Endpoint, store: AdapterStore, base: BaseModel, trained: TrainedAdapter, tmp_path: Path
) -> None:
    manifest = await publish(store, "folder", trained.weights, recipe=trained.recipe)
    stored = await store.fetch(manifest.ref)

    folder = _download(s3_endpoint, manifest.ref, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base.main_brain.path)
    with torch.inference_mode():
        base_logits = plain(torch.tensor(TOKENS)).logits[0]
        peft = PeftModel.from_pretrained(plain, folder).eval()
        peft_logits = peft(torch.tensor(TOKENS)).logits[0]
    description = json.loads((folder / "adapter_config.json").read_text())
    assert description["lora_alpha"] == SCALE * trained.recipe.lora.alpha

    torch.testing.assert_close(
        _logits_that_serve(base, stored.weights, stored.manifest.recipe.scaling), peft_logits, atol=ATOL, rtol=0
    )
    # The adapter changes far more than the tolerance, and so does its strength.
    stronger = _logits_that_serve(base, stored.weights, stored.manifest.recipe.scaling / SCALE)
    assert (peft_logits - base_logits).abs().max() > 100 * ATOL
    assert (peft_logits - stronger).abs().max() > 100 * ATOL


async def test_a_version_of_before_serves_as_the_folder_of_the_same_weights_does(
    engine: TorchEngine, store: AdapterStore, blobs: S3Blobs, trained: TrainedAdapter
) -> None:
    await publish(store, "new", trained.weights, recipe=replace(trained.recipe, clone_id="new"))
    bare_recipe = replace(trained.recipe, clone_id="before")
    bare = await write_bare_version(blobs, store.ref("before", 1), trained.weights, recipe=bare_recipe)
    await store.activate("before", 1)

    before, new, base_reply = [await complete(engine, _greedy(student)) for student in ("before", "new", None)]

    assert before.adapter is not None
    assert (before.adapter.ref, before.adapter.sha256, before.fallback) == (bare.ref, bare.sha256, None)
    assert before.text == new.text != base_reply.text


def _greedy(student_id: str | None) -> Generation:
    prompt = Prompt(
        profile=PROFILE, turns=(Turn(role=Role.STUDENT, text="Why is ice cold?"),), instruction="You are a tutor."
    )
    return Generation(prompt=prompt, student_id=student_id, sampling=Sampling(temperature=0.0, max_tokens=12))


def _logits_that_serve(base: BaseModel, weights: bytes, scaling: float) -> torch.Tensor:
    """The logits of the tokens as the torch engine computes them with an adapter in a slot."""
    model = AutoModelForCausalLM.from_pretrained(base.main_brain.path)
    decoder = Decoder(model.eval(), rows=1, context_tokens=32)
    tables = SlotTables(decoder.shape, spec=LoraSpec(), slots=1, dtype=torch.float32, device=torch.device("cpu"))
    tables.put(0, tables.pack(from_safetensors(weights), scaling=scaling))
    with torch.inference_mode():
        (logits,) = logits_of_rows(decoder, TOKENS, seed=1, tables=tables, slots=(0,))
    return logits


def _download(s3_endpoint: S3Endpoint, ref: AdapterRef, folder: Path) -> Path:
    """Copies a folder of the bucket, as any S3 client would."""
    s3: S3Client = Session().client("s3", endpoint_url=s3_endpoint.url)
    folder.mkdir()
    for item in s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{ref}/")["Contents"]:
        s3.download_file(BUCKET, item["Key"], str(folder / item["Key"].removeprefix(f"{ref}/")))
    s3.close()
    return folder
