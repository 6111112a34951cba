"""Publishes adapters in one call, where the cloning server stages first and activates later."""

from mesh.adapters.manifest import Manifest, Recipe
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
