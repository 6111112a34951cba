"""`aivo models export`, as a process, from the real S3."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig

from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.main_brain.files import fetch_main_brain
from testing.adapters import publish, write_bare_version
from testing.models.random_adapters import Widths, random_weights, recipe
from testing.models.random_roles import write_random_role
from testing.models.small_models import VOCABULARY, small_model
from testing.parts.stores import S3Endpoint
from tests.client.conftest import CommandResult, run_module

CONFIG = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
WEIGHTS = random_weights(1, widths=Widths.of(CONFIG), strength=0.5)
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json"}

Export = Callable[..., Awaitable[CommandResult]]


@pytest.fixture
async def blobs(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as opened:
        await opened.check()
        yield opened


@pytest.fixture
def store(blobs: S3Blobs) -> AdapterStore:
    return AdapterStore(blobs)


@pytest.fixture
def export(s3_endpoint: S3Endpoint, bucket: str, tmp_path: Path) -> Export:
    """Runs the command with the store's address in its environment, and roles and models of this test alone."""

    async def run(*words: str, **env: str) -> CommandResult:
        variables = {
            "S3_ENDPOINT_URL": s3_endpoint.url,
            "S3_BUCKET": bucket,
            "MODEL_CACHE_DIR": str(tmp_path / "models"),
            "ROLES_DIR": str(tmp_path / "roles"),
        }
        return await run_module("client", "models", "export", *words, env=variables | env)

    return run


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def require_whole(folder: Path, manifest: Manifest) -> None:
    """Asserts that a folder is that version, with its strength."""
    assert sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest() == manifest.sha256
    description = json.loads((folder / "adapter_config.json").read_text())
    assert description["lora_alpha"] == manifest.recipe.scale * manifest.recipe.lora.alpha
    fields = json.loads((folder / "manifest.json").read_text())
    assert (fields["sha256"], fields["recipe"]["scale"]) == (manifest.sha256, manifest.recipe.scale)
    card = (folder / "README.md").read_text()
    assert manifest.sha256 in card
    assert manifest.recipe.base_digest in card


async def test_the_version_that_answers_is_exported_or_the_one_that_is_named(
    export: Export, store: AdapterStore, tmp_path: Path
) -> None:
    first = await publish(store, "alex", WEIGHTS, recipe=replace(recipe(base_digest="a" * 64), scale=0.75))
    second = await publish(store, "alex", random_weights(2), recipe=recipe(base_digest="b" * 64))
    (tmp_path / "empty").mkdir()

    active = await export("alex", "--output", str(tmp_path / "new" / "folder"))
    earlier = await export("alex", "--version", "1", "--output", str(tmp_path / "empty"))

    assert (active.status, active.err) == (earlier.status, earlier.err) == (0, "")
    assert "alex: version 2" in active.out
    for folder, manifest in ((tmp_path / "new" / "folder", second), (tmp_path / "empty", first)):
        assert files_of(folder) == FILES
        require_whole(folder, manifest)
    assert files_of(tmp_path / "new") == {"folder"}
    assert "aivo models export alex --version 1 --output FOLDER --with-base" in (
        (tmp_path / "empty" / "README.md").read_text()
    )


async def test_a_version_of_before_is_exported_as_a_folder_that_can_be_put_back(
    export: Export, blobs: S3Blobs, store: AdapterStore, tmp_path: Path
) -> None:
    bare = await write_bare_version(blobs, store.ref("alex", 1), WEIGHTS, recipe=recipe(base_digest="a" * 64))

    result = await export("alex", "--version", "1", "--output", str(tmp_path / "out"))

    assert (result.status, result.err) == (0, "")
    require_whole(tmp_path / "out", bare)
    await blobs.erase("default/")
    for path in (tmp_path / "out").iterdir():
        await blobs.create(f"{bare.ref}/{path.name}", path.read_bytes())
    assert (await store.fetch(bare.ref)).weights == WEIGHTS


async def test_the_main_brain_is_exported_beside_and_peft_loads_both(
    export: Export, store: AdapterStore, tmp_path: Path
) -> None:
    base_folder = tmp_path / "small"
    small_model(CONFIG).save_pretrained(base_folder)
    plain = fetch_main_brain(str(base_folder), tmp_path / "models", [])
    write_random_role(
        tmp_path / "roles", base_folder, role="tutor", base_digest=plain.digest, base_model=str(base_folder)
    )
    brain = fetch_main_brain(str(base_folder), tmp_path / "models", [tmp_path / "roles"])
    assert brain.tutor is not None
    fitting = replace(recipe(base_digest=brain.digest), base_model=str(base_folder))
    await publish(store, "alex", WEIGHTS, recipe=fitting)

    result = await export("alex", "--output", str(tmp_path / "out"), "--with-base")

    assert (result.status, result.err) == (0, "")
    assert files_of(tmp_path / "out") == FILES | {"main_brain"}
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "main_brain")
        base_logits = exported(tokens).logits
        assert torch.equal(base_logits, AutoModelForCausalLM.from_pretrained(brain.path)(tokens).logits)
        assert not torch.equal(PeftModel.from_pretrained(exported, tmp_path / "out")(tokens).logits, base_logits)


async def test_another_main_brain_than_the_version_fits_is_not_exported(
    export: Export, store: AdapterStore, tmp_path: Path
) -> None:
    small_model(CONFIG).save_pretrained(tmp_path / "small")
    other = replace(recipe(base_digest="a" * 64), base_model=str(tmp_path / "small"))
    await publish(store, "alex", WEIGHTS, recipe=other)

    result = await export("alex", "--output", str(tmp_path / "out"), "--with-base")

    assert result.status == 1
    assert "ADAPTER_INCOMPATIBLE: version 1 fits the Main Brain aaaaaaaaaaaa" in result.err
    assert not (tmp_path / "out").exists()


async def test_what_is_there_is_never_replaced(export: Export, store: AdapterStore, tmp_path: Path) -> None:
    await publish(store, "alex", WEIGHTS, recipe=recipe(base_digest="a" * 64))
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    file.write_text("mine")

    for path in (folder, file):
        result = await export("alex", "--output", str(path))
        assert result.status == 2
        assert "output: exists" in result.err
    assert files_of(folder) == {"notes"}
    assert file.read_text() == "mine"


async def test_what_is_not_there_or_not_sound_is_refused_and_leaves_nothing(
    export: Export, blobs: S3Blobs, store: AdapterStore, tmp_path: Path
) -> None:
    manifest = await publish(store, "alex", WEIGHTS, recipe=recipe(base_digest="a" * 64))
    await blobs.erase(manifest.weights_key)
    await blobs.create(manifest.weights_key, WEIGHTS[:-1] + b"\1")
    output = ("--output", str(tmp_path / "out"))

    for words, env, status, line in (
        (("alex",), {}, 1, "ADAPTER_CORRUPT"),
        (("alex", "--version", "7"), {}, 1, "MODEL_VERSION_NOT_FOUND"),
        (("nobody",), {}, 1, "STUDENT_MODEL_NOT_FOUND"),
        (("../x",), {}, 2, "student_id"),
        (("alex",), {"TENANT": "No Tenant"}, 2, "TENANT"),
        (("alex",), {"S3_BUCKET": "no-such-bucket"}, 3, "NoSuchBucket"),
    ):
        result = await export(*words, *output, **env)
        assert result.status == status, result.err
        assert line in result.err
    assert files_of(tmp_path) == set()
