"""The adapter store: what it means to publish, to activate and to fetch a student's adapter.

A version exists once its manifest does, and the manifest is written after the weights: a crash in between publishes
nothing. Every write is conditional, so no version is ever overwritten and no two publishers undo each other. Reads
believe nothing they have not checked.

Knows no vendor: `Blobs` holds the bytes. Keeps nothing in memory; a cache is its caller's business.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from mesh.adapters.blobs import Blob, BlobConflict, Blobs
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Manifest, Recipe
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.ref import DEFAULT_TENANT, AdapterRef, StudentKeys
from mesh.errors import AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound, PublishConflict
from mesh.log import get_logger

# A manifest has about 1.5 kB and a pointer 200 bytes.
_DOCUMENT_LIMIT_BYTES = 64 * 1024
# Publishers of one student are few (one clone runs at a time), so a conflict that persists is a fault, not a race.
_TRIES = 16

# Is told which version is active once the pointer names it, and must not fail.
Announce = Callable[[ActiveAdapter], Awaitable[None]]

_log = get_logger(__name__)


async def _tell_nobody(_active: ActiveAdapter) -> None:
    """Stands where nobody needs to know at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """A version as it was published, checked."""

    manifest: Manifest
    weights: bytes


class AdapterStore:
    """One tenant's adapters.

    Every method raises `AdapterStoreUnavailable` when the store does not answer, and `InvalidField` for a malformed id.

    Args:
        blobs: Holds the bytes.
        tenant: Whose adapters.
        limits: What an adapter may measure.
        announce: Tells others of a pointer that was moved here.
    """

    def __init__(
        self,
        blobs: Blobs,
        *,
        tenant: str = DEFAULT_TENANT,
        limits: AdapterLimits | None = None,
        announce: Announce = _tell_nobody,
    ) -> None:
        self._blobs = blobs
        self._tenant = tenant
        self._limits = limits or AdapterLimits()
        self._announce = announce

    async def publish(self, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
        """Stages a version and makes it the active one, unless a later one is active already.

        Raises:
            AdapterCorrupt, AdapterIncompatible: The weights fail inspection; nothing is written.
            PublishConflict: Other publishers won again and again.
        """
        manifest = await self.stage(student_id, weights, recipe=recipe)
        await self.activate(student_id, manifest.ref.version, only_forward=True)
        return manifest

    async def stage(self, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
        """Writes the next version without making it active.

        A clone makes one version however often it is staged: once one call committed, every other returns that
        version's manifest, whatever weights it brings. So a worker that does not know whether it crashed before or
        after may stage again.

        Raises:
            AdapterCorrupt, AdapterIncompatible: The weights fail inspection; nothing is written.
            PublishConflict: Other publishers took one version number after the other.
        """
        keys = self._keys(student_id)
        commit_key = keys.clone(recipe.clone_id)
        committed = await self._read_manifest(commit_key)
        if committed is None:
            await asyncio.to_thread(inspect, weights, lora=recipe.lora, limits=self._limits)
            ref = await self._write_weights(keys, weights)
            manifest = await asyncio.to_thread(Manifest.of, weights, ref=ref, recipe=recipe)
            committed = await self._commit(commit_key, manifest)
        # Also after a crash between the commit and this write: whoever comes next finishes it with the same bytes.
        await self._create_once(committed.ref.manifest_key, committed.to_json())
        return committed

    async def activate(self, student_id: str, version: int, *, only_forward: bool = False) -> ActiveAdapter:
        """Moves the pointer to a version and returns what is active then.

        Args:
            student_id: The student.
            version: A published one, earlier or later than the active one.
            only_forward: Leave the pointer alone if it names a later version, as a publisher that was overtaken must.

        Raises:
            ModelVersionNotFound: The student has no such version.
            AdapterCorrupt: The version's manifest or the pointer does not parse.
            PublishConflict: Others moved the pointer again and again.
        """
        ref = self.ref(student_id, version)
        manifest = await self._manifest_of(ref)
        target = ActiveAdapter(ref=ref, sha256=manifest.sha256)
        active = await self._point_at(target, only_forward=only_forward)
        if active == target:
            # Also if it was active already: whoever moved the pointer may have ended before it told anyone.
            await self._announce(active)
        return active

    async def resolve_active(self, student_id: str) -> ActiveAdapter | None:
        """The student's active version, or None if the student has none.

        Raises:
            AdapterCorrupt: The pointer does not parse.
        """
        return self._active_in(await self._read_pointer(student_id), student_id)

    async def fetch(self, ref: AdapterRef, *, sha256: str | None = None) -> StoredAdapter:
        """Reads a version and checks it: manifest, size, sha256, then every tensor.

        Args:
            ref: The version.
            sha256: What the pointer says; a version that tells otherwise is refused before its weights are read.

        Raises:
            ModelVersionNotFound: The student has no such version.
            AdapterCorrupt: What is stored is not what was published.
            AdapterIncompatible: It is above this store's limits.
        """
        manifest = await self._manifest_of(ref)
        if sha256 not in (None, manifest.sha256):
            raise AdapterCorrupt(f"the manifest of {ref} tells another sha256 than the pointer")
        if manifest.size_bytes > self._limits.size_bytes:
            raise AdapterIncompatible(
                f"{ref} has {manifest.size_bytes} bytes, above the limit of {self._limits.size_bytes}",
                limit=self._limits.size_bytes,
            )
        blob = await self._blobs.read(ref.weights_key, limit_bytes=manifest.size_bytes)
        if blob is None:
            raise AdapterCorrupt(f"the weights of {ref} are missing")
        await asyncio.to_thread(self._verify, blob.data, manifest)
        return StoredAdapter(manifest=manifest, weights=blob.data)

    async def list_versions(self, student_id: str) -> list[Manifest]:
        """The manifests of all versions, oldest first; one that does not parse is left out and logged."""
        keys = self._keys(student_id)
        found = set(await self._blobs.keys(keys.prefix))
        versions = sorted({version for key in found if (version := keys.version_in(key))})
        refs = [self.ref(student_id, version) for version in versions]
        published = [ref for ref in refs if ref.manifest_key in found]
        results = await asyncio.gather(*map(self._manifest_of, published), return_exceptions=True)
        return list(_sound(published, results))

    def ref(self, student_id: str, version: int) -> AdapterRef:
        """Names a version of this tenant, whether or not it exists."""
        return AdapterRef(student_id=student_id, version=version, tenant=self._tenant)

    async def check(self) -> None:
        """Returns if the store answers; cheap enough for a health check."""
        await self._blobs.check()

    def _keys(self, student_id: str) -> StudentKeys:
        return StudentKeys(student_id=student_id, tenant=self._tenant)

    async def _write_weights(self, keys: StudentKeys, weights: bytes) -> AdapterRef:
        # The number is taken by the weights, so it is free only if no weights are there, published or not.
        versions = [keys.version_in(key) or 0 for key in await self._blobs.keys(keys.prefix)]
        first = max(versions, default=0) + 1
        for version in range(first, first + _TRIES):
            ref = self.ref(keys.student_id, version)
            try:
                await self._blobs.create(ref.weights_key, weights)
            except BlobConflict:
                continue
            return ref
        raise PublishConflict(f"no version of student {keys.student_id} was free", student_id=keys.student_id)

    async def _commit(self, commit_key: str, manifest: Manifest) -> Manifest:
        """Makes the version that of its clone, or returns the one that already is."""
        committed = Manifest.from_json(await self._create_once(commit_key, manifest.to_json()))
        if committed.ref != manifest.ref:
            # A second worker on the same clone lost; nobody knows of its weights.
            await self._blobs.delete([manifest.ref.weights_key])
        return committed

    async def _create_once(self, key: str, data: bytes) -> bytes:
        """Writes the document if the key is free, and returns what is there."""
        for _ in range(_TRIES):
            try:
                await self._blobs.create(key, data)
            except BlobConflict:
                blob = await self._blobs.read(key, limit_bytes=_DOCUMENT_LIMIT_BYTES)
                if blob is not None:
                    return blob.data
                # Two writes met and neither is there yet, or someone removed it: the key is free again.
                continue
            return data
        raise PublishConflict(f"{key} was taken and free in turns")

    async def _read_manifest(self, key: str) -> Manifest | None:
        blob = await self._blobs.read(key, limit_bytes=_DOCUMENT_LIMIT_BYTES)
        return None if blob is None else Manifest.from_json(blob.data)

    async def _manifest_of(self, ref: AdapterRef) -> Manifest:
        manifest = await self._read_manifest(ref.manifest_key)
        if manifest is None:
            raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
        if manifest.ref != ref:
            # Else a folder copied by hand would serve one student's adapter to another.
            raise AdapterCorrupt(f"the manifest of {ref} is that of another version")
        return manifest

    async def _read_pointer(self, student_id: str) -> Blob | None:
        return await self._blobs.read(self._keys(student_id).active, limit_bytes=_DOCUMENT_LIMIT_BYTES)

    def _active_in(self, blob: Blob | None, student_id: str) -> ActiveAdapter | None:
        if blob is None:
            return None
        active = ActiveAdapter.from_json(blob.data)
        if active.ref != self.ref(student_id, active.ref.version):
            raise AdapterCorrupt(f"the pointer of student {student_id} names another student's version")
        return active

    async def _point_at(self, target: ActiveAdapter, *, only_forward: bool) -> ActiveAdapter:
        """Moves the pointer unless it need not or may not move, and returns what it names."""
        student_id, version = target.ref.student_id, target.ref.version
        for _ in range(_TRIES):
            blob = await self._read_pointer(student_id)
            current = self._active_in(blob, student_id)
            if current is not None and (current == target or (only_forward and current.ref.version > version)):
                return current
            try:
                await self._move_pointer(target, seen=blob)
            except BlobConflict:
                continue
            return target
        raise PublishConflict(f"the active version of student {student_id} kept moving", student_id=student_id)

    async def _move_pointer(self, target: ActiveAdapter, *, seen: Blob | None) -> None:
        key = self._keys(target.ref.student_id).active
        if seen is None:
            await self._blobs.create(key, target.to_json())
        else:
            await self._blobs.replace(key, target.to_json(), etag=seen.etag)

    def _verify(self, weights: bytes, manifest: Manifest) -> None:
        if hashlib.sha256(weights).hexdigest() != manifest.sha256:
            raise AdapterCorrupt(f"the weights of {manifest.ref} fail their sha256")
        inspect(weights, lora=manifest.recipe.lora, limits=self._limits)


def _sound(refs: Sequence[AdapterRef], results: Sequence[Manifest | BaseException]) -> list[Manifest]:
    manifests = []
    for ref, result in zip(refs, results, strict=True):
        if isinstance(result, AdapterCorrupt):
            # One bad version must not hide the good ones that a teacher would roll back to.
            _log.warning("adapter_manifest_corrupt", ref=str(ref))
        elif isinstance(result, BaseException):
            raise result
        else:
            manifests.append(result)
    return manifests
