"""Publication: how the weights that a clone made become a version, once or never.

The clone's commit is the arbiter. It is created once, with `If-None-Match: *`: by a worker, with the manifest of the
version that the clone makes, or by whoever cancels the clone, as void. So a worker that was paused and wakes up late
finds that the clone has its version, or that it may have none; it then takes away what it wrote, and what it can't take
away because it died is the sweeper's.

The order of a publication is weights, commit, manifest, and a last look at the weights. Whoever withdraws a version
makes its commit void, then removes manifest and weights. So one of two that meet sees what the other did, whatever the
order of their steps.
"""

import asyncio

from mesh.adapters.blobs import BlobConflict
from mesh.adapters.documents import TRIES, VOID, Documents, versions_in
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Manifest, Recipe
from mesh.adapters.ref import AdapterRef
from mesh.errors import PublishConflict


class CloneVoided(Exception):
    """The clone may publish nothing any more: it was cancelled, or what it had published was removed."""

    def __init__(self, clone_id: str) -> None:
        super().__init__(f"clone {clone_id} is void")
        self.clone_id = clone_id


class Publication:
    """Stages and voids; `AdapterStore` says what these mean."""

    def __init__(self, documents: Documents, *, limits: AdapterLimits) -> None:
        self._documents = documents
        self._limits = limits

    async def stage(self, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
        """See `AdapterStore.stage`."""
        committed = await self._documents.read_commit(recipe.clone_id)
        if committed is None:
            await asyncio.to_thread(inspect, weights, lora=recipe.lora, limits=self._limits)
            ref = await self._write_weights(student_id, weights)
            manifest = await asyncio.to_thread(Manifest.of, weights, ref=ref, recipe=recipe)
            committed = await self._commit(manifest, weights)
        if committed == VOID:
            raise CloneVoided(recipe.clone_id)
        manifest = Manifest.from_json(committed)
        if manifest.ref.student_id != student_id:
            raise PublishConflict(f"clone {recipe.clone_id} made a version of another student")
        if await self._complete(manifest) is None:
            raise CloneVoided(recipe.clone_id)
        return manifest

    async def void(self, clone_id: str) -> Manifest | None:
        """See `AdapterStore.void`."""
        committed = await self._documents.create_once(self._documents.keys.commit(clone_id), VOID)
        return None if committed == VOID else await self._complete(Manifest.from_json(committed))

    async def finish(self, clone_id: str) -> Manifest | None:
        """Completes what a clone committed; None if it committed nothing, or what it did was withdrawn."""
        committed = await self._documents.read_commit(clone_id)
        return None if committed is None or committed == VOID else await self._complete(Manifest.from_json(committed))

    async def _complete(self, manifest: Manifest) -> Manifest | None:
        """Writes the manifest of a committed version unless it is there, or returns None if it was withdrawn.

        Also after a crash between the commit and the manifest: whoever comes next completes it with the same bytes.
        """
        ref = manifest.ref
        told = await self._documents.create_once(ref.manifest_key, manifest.to_json())
        is_ours = told != VOID and Manifest.from_json(told) == manifest
        if is_ours and await self._documents.has_weights_of(manifest):
            return manifest
        await self._documents.revoke(manifest.recipe.clone_id)
        await self._documents.take_back(ref.manifest_key, manifest.to_json())
        return None

    async def _write_weights(self, student_id: str, weights: bytes) -> AdapterRef:
        # The number is taken by the weights, so it is free only if no weights are there, published or not.
        keys = self._documents.keys_of(student_id)
        first = max(versions_in(keys, await self._documents.blobs.keys(keys.prefix)), default=0) + 1
        for version in range(first, first + TRIES):
            ref = self._documents.ref(student_id, version)
            try:
                await self._documents.blobs.create(ref.weights_key, weights)
            except BlobConflict:
                continue
            return ref
        raise PublishConflict(f"no version of student {student_id} was free", student_id=student_id)

    async def _commit(self, manifest: Manifest, weights: bytes) -> bytes:
        """Makes the version that of its clone, or returns what the clone committed otherwise."""
        ours = manifest.to_json()
        committed = await self._documents.create_once(self._documents.keys.commit(manifest.recipe.clone_id), ours)
        if committed == VOID or Manifest.from_json(committed).ref != manifest.ref:
            # The clone was cancelled, or a second worker was faster; nobody knows of these weights.
            await self._documents.take_back(manifest.ref.weights_key, weights)
        return committed
