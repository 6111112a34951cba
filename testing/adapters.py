"""Publishes adapters in one call, where the cloning server stages first and activates later."""

from dataclasses import replace

from mesh.adapters.blobs import Blobs
from mesh.adapters.documents import Documents
from mesh.adapters.manifest import Manifest, Recipe
from mesh.adapters.ref import AdapterRef
from mesh.adapters.store import AdapterStore


async def publish(store: AdapterStore, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
    """Stages a version and makes it the active one, unless a later one is active already.

    Raises:
        AdapterCorrupt, AdapterIncompatible: The weights fail inspection; nothing is written.
        CloneVoided: The clone may publish nothing any more.
        PublishConflict: Other publishers kept winning.
    """
    manifest = await store.stage(student_id, weights, recipe=recipe)
    await store.activate(student_id, manifest.ref.version, only_forward=True)
    return manifest


async def write_bare_version(blobs: Blobs, ref: AdapterRef, weights: bytes, *, recipe: Recipe) -> Manifest:
    """Writes a version as AIVO 0.1.0 did: its weights under another name than PEFT's, and no description of them."""
    manifest = replace(Manifest.of(weights, ref=ref, recipe=recipe), schema=1)
    documents = Documents(blobs, tenant=ref.tenant)
    await blobs.create(f"{ref}/adapter.safetensors", weights)
    for key in (documents.keys.commit(recipe.clone_id), f"{ref}/manifest.json"):
        await blobs.create(key, manifest.to_json())
    return manifest
