"""What lies in the bucket: a folder per version that PEFT loads, and versions of before, on the real S3."""

import json
from dataclasses import replace
from hashlib import sha256

import pytest

from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, RemovedAdapters, SweepReport
from mesh.errors import AdapterCorrupt, ModelVersionNotFound
from testing.adapters import publish, write_bare_version
from testing.leftovers import leftovers
from tests.mesh.adapters.conftest import LORA, recipe, weights


async def test_a_version_is_a_folder_of_weights_description_and_manifest(
    store: AdapterStore, blobs: S3Blobs, student: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())

    contents = {}
    for key in await blobs.keys(f"{manifest.ref}/"):
        blob = await blobs.read(key, limit_bytes=100_000)
        assert blob is not None
        contents[key.removeprefix(f"{manifest.ref}/")] = blob.data
    assert contents.keys() == {"adapter_model.safetensors", "adapter_config.json", "manifest.json"}
    assert contents["adapter_model.safetensors"] == weights()
    description = json.loads(contents["adapter_config.json"])
    assert (description["peft_type"], description["task_type"]) == ("LORA", "CAUSAL_LM")
    assert (description["base_model_name_or_path"], description["r"]) == ("SmolLM2-135M-Instruct", LORA.rank)
    assert description["target_modules"] == list(LORA.target_modules)
    # Training's alpha, times the picked scale.
    assert description["lora_alpha"] == LORA.alpha * 1.5
    fields = json.loads(contents["manifest.json"])
    assert (fields["sha256"], fields["recipe"]["scale"]) == (sha256(weights()).hexdigest(), 1.5)


async def test_a_version_of_before_is_read_and_the_next_one_is_a_folder(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    bare = await write_bare_version(blobs, store.ref(student, 1), weights(seed=1), recipe=recipe("clone_1"))
    await store.activate(student, 1)

    stored = await store.fetch(bare.ref, sha256=bare.sha256)
    assert (stored.manifest, stored.weights) == (bare, weights(seed=1))
    assert await store.read_manifest(student, 1) == bare
    assert (await store.list_page(student, size=5)).manifests == (bare,)

    folder = await publish(store, student, weights(seed=2), recipe=recipe("clone_2"))
    assert await store.list_versions(student) == [bare, folder]
    await store.pin(student, 1)
    assert (await store.activate(student, 1)).current.sha256 == bare.sha256
    assert await leftovers(blobs, store, tenant) == set()


async def test_weights_of_a_version_of_before_are_checked_too(
    store: AdapterStore, blobs: S3Blobs, student: str
) -> None:
    bare = await write_bare_version(blobs, store.ref(student, 1), weights(seed=1), recipe=recipe())
    await blobs.erase(f"{bare.ref}/adapter.safetensors")
    await blobs.create(f"{bare.ref}/adapter.safetensors", weights(seed=2))
    with pytest.raises(AdapterCorrupt, match="sha256"):
        await store.fetch(bare.ref)


async def test_a_sweep_leaves_versions_of_before_as_they_are(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    await write_bare_version(blobs, store.ref(student, 1), weights(), recipe=recipe())
    keys = await blobs.keys(f"{tenant}/")

    assert await store.sweep(older_than_seconds=0) == SweepReport()
    assert await blobs.keys(f"{tenant}/") == keys


async def test_a_version_of_before_that_lacks_its_manifest_is_finished(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    bare = await write_bare_version(blobs, store.ref(student, 1), weights(), recipe=recipe())
    await blobs.erase(bare.ref.manifest_key)

    assert await store.sweep(older_than_seconds=0) == SweepReport(finished_versions=1)
    assert await store.list_versions(student) == [bare]
    assert set(await blobs.keys(f"{bare.ref}/")) == bare.keys


async def test_weights_of_before_that_nobody_committed_go(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    await blobs.create(f"{store.ref(student, 1)}/adapter.safetensors", weights())
    assert (await store.sweep(older_than_seconds=0)).removed_versions == 1
    assert await blobs.keys(f"{tenant}/") == []


async def test_versions_of_before_are_retired_and_deleted(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    for number in (1, 2):
        written = recipe(f"clone_{number}")
        await write_bare_version(blobs, store.ref(student, number), weights(seed=number), recipe=written)
    await publish(store, student, weights(seed=3), recipe=replace(recipe("clone_3"), scale=0.5))

    assert await store.retire(student, keep=2) == [1]
    with pytest.raises(ModelVersionNotFound):
        await store.fetch(store.ref(student, 1))
    assert await leftovers(blobs, store, tenant) == set()

    size = sum([entry.size_bytes async for entry in blobs.entries(f"{tenant}/{student}/")])
    # Two objects of the second version, three of the third, and the pointer.
    assert await store.delete_student(student) == RemovedAdapters(versions=2, objects=6, bytes=size)
    assert await store.void("clone_2") is None
