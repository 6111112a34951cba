"""Publication: how the weights of a clone become a version, once or never.

The clone's commit decides. It is created once, with `If-None-Match: *`: by a worker, with the manifest of the clone's
version, or by a process that cancels the clone, as void. So a worker that was paused and resumes late finds that the
clone has a version already, or must not have one. It then removes what it wrote; if it dies first, the sweeper does.

A publication writes weights, commit, PEFT's description and manifest, and then reads the weights once more. A
withdrawal makes the commit void, then removes the manifest and the rest. So whichever order their steps take, one of
the two sees what the other did.
"""

import asyncio

from mesh.adapters.blobs import BlobConflict
from mesh.adapters.documents import DOCUMENT_BYTES, TRIES, VOID, Documents, versions_in
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Manifest, Recipe
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterIncompatible, PublishConflict


class CloneVoided(Exception):
    """The clone must not publish: it was cancelled, or its version was removed."""

    def __init__(self, clone_id: str) -> None:
        super().__init__(f"clone {clone_id} must not publish: its commit is void")
        self.clone_id = clone_id


class Publication:
    """Stages and voids; `AdapterStore` documents each method."""

    def __init__(self, documents: Documents, *, limits: AdapterLimits) -> None:
        self._documents = documents
        self._limits = limits

    async def stage(self, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
        """See `AdapterStore.stage`."""
        commit = await self._documents.read_commit(recipe.clone_id)
        if commit is None:
            await asyncio.to_thread(inspect, weights, lora=recipe.lora, limits=self._limits)
            ref = await self._write_weights(student_id, weights)
            manifest = await asyncio.to_thread(Manifest.of, weights, ref=ref, recipe=recipe)
            commit = await self._commit(manifest, weights)
        if commit == VOID:
            raise CloneVoided(recipe.clone_id)
        manifest = Manifest.from_json(commit)
        if manifest.ref.student_id != student_id:
            raise PublishConflict(f"clone {recipe.clone_id} has published a version for another student")
        if await self._complete(commit) is None:
            raise CloneVoided(recipe.clone_id)
        return manifest

    async def void(self, clone_id: str) -> Manifest | None:
        """See `AdapterStore.void`."""
        commit = await self._documents.create_once(self._documents.keys.commit(clone_id), VOID)
        return None if commit == VOID else await self._complete(commit)

    async def finish(self, clone_id: str) -> Manifest | None:
        """Completes the clone's version; returns None if the clone has committed none, or it was withdrawn."""
        commit = await self._documents.read_commit(clone_id)
        return None if commit is None or commit == VOID else await self._complete(commit)

    async def _complete(self, commit: bytes) -> Manifest | None:
        """Writes what a committed version lacks, its manifest last; returns None if the version was withdrawn.

        After a crash between the commit and the manifest, any later call completes the version. The manifest is the
        commit, byte by byte, as it may hold fields that only a newer server knows.
        """
        manifest = Manifest.from_json(commit)
        ref = manifest.ref
        if ref.config_key in manifest.keys:
            await self._documents.create_once(ref.config_key, manifest.recipe.peft_config)
        document = await self._documents.create_once(ref.manifest_key, commit)
        is_own = document != VOID and Manifest.from_json(document) == manifest
        has_own_weights = await self._documents.has_weights_of(manifest)
        if is_own and has_own_weights:
            # A clone that woke up after its number was freed and taken may have left another.
            await self._documents.correct(ref.config_key, manifest.recipe.peft_config)
            return manifest
        await self._documents.revoke(manifest.recipe.clone_id)
        await self._documents.take_back(ref.manifest_key, commit)
        if has_own_weights or not await self._documents.has_weights(ref):
            # Beside another clone's weights it may be theirs, as two descriptions can be alike.
            await self._documents.take_back(ref.config_key, manifest.recipe.peft_config)
        return None

    async def _write_weights(self, student_id: str, weights: bytes) -> AdapterRef:
        # The weights take the number, so it is free only if it has no weights, published or not.
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
        """Commits the version, and returns the clone's commit: this one or an earlier one."""
        document = manifest.to_json()
        if len(document) > DOCUMENT_BYTES:
            # Nobody could read it again, so nobody could remove it.
            await self._documents.take_back(manifest.ref.weights_key, weights)
            raise AdapterIncompatible(f"the manifest has {len(document)} bytes, above the limit of {DOCUMENT_BYTES}")
        key = self._documents.keys.commit(manifest.recipe.clone_id)
        commit = await self._documents.create_once(key, document)
        if commit == VOID or Manifest.from_json(commit).ref != manifest.ref:
            # The clone was cancelled, or another worker was faster. Nothing refers to these weights.
            await self._documents.take_back(manifest.ref.weights_key, weights)
        return commit
