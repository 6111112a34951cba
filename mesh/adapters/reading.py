"""Reading: one version's manifest and weights, and the list of a student's versions. Validates all that it returns."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.adapters.documents import Documents, versions_in
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef, is_student_id
from mesh.errors import AdapterCorrupt, AdapterIncompatible, AdapterOutdated, ModelVersionNotFound
from mesh.log import get_logger

_log = get_logger(__name__)

# Students read at the same time; fewer than the store's threads, so that other calls get a thread.
_PARALLEL_STUDENTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """One version as it was published, validated."""

    manifest: Manifest
    weights: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPage:
    """Some of a student's versions, newest first.

    Attributes:
        manifests: Manifests of the versions.
        next_below: All versions of the next page are below this one; None if there is no next page.
    """

    manifests: tuple[Manifest, ...]
    next_below: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutdatedPage:
    """Some of the active versions that belong to another Main Brain.

    Attributes:
        manifests: Manifests of the versions, by student.
        next_after: The tenant's folder that the next page starts after; None on the last page.
    """

    manifests: tuple[Manifest, ...]
    next_after: str | None


class Reading:
    """Reads versions; `AdapterStore` documents each method."""

    def __init__(self, documents: Documents, *, limits: AdapterLimits) -> None:
        self._documents = documents
        self._blobs = documents.blobs
        self._limits = limits

    async def fetch(self, ref: AdapterRef, *, sha256: str | None, base_digest: str | None) -> StoredAdapter:
        """See `AdapterStore.fetch`."""
        manifest = await self._documents.read_manifest(ref)
        if sha256 not in (None, manifest.sha256):
            raise AdapterCorrupt(f"the manifest of {ref} has another sha256 than the pointer")
        if base_digest not in (None, manifest.recipe.base_digest):
            digest = manifest.recipe.base_digest
            raise AdapterOutdated(student_id=ref.student_id, version=ref.version, base_digest=digest)
        if manifest.size_bytes > self._limits.size_bytes:
            raise AdapterIncompatible(
                f"{ref} has {manifest.size_bytes} bytes, above the limit of {self._limits.size_bytes}"
            )
        blob = await self._blobs.read(manifest.weights_key, limit_bytes=manifest.size_bytes)
        if blob is None:
            if await self._documents.is_void(manifest.recipe.clone_id):
                # The version was removed between the two reads.
                raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
            raise AdapterCorrupt(f"the weights of {ref} are missing")
        await asyncio.to_thread(self._verify, blob.data, manifest)
        return StoredAdapter(manifest=manifest, weights=blob.data)

    async def read_manifest(self, ref: AdapterRef) -> Manifest:
        """See `AdapterStore.read_manifest`."""
        if not await self._documents.has_weights(ref):
            raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
        return await self._documents.read_manifest(ref)

    async def list_versions(self, student_id: str) -> list[Manifest]:
        """See `AdapterStore.list_versions`."""
        return await self._read_manifests(await self._published(student_id))

    async def list_page(self, student_id: str, *, size: int, below: int | None) -> VersionPage:
        """See `AdapterStore.list_page`."""
        refs = [ref for ref in await self._published(student_id) if below is None or ref.version < below][::-1]
        manifests = await self._read_manifests(refs[:size])
        return VersionPage(manifests=tuple(manifests), next_below=refs[size - 1].version if len(refs) > size else None)

    async def list_outdated(self, base_digest: str, *, size: int, after: str | None) -> OutdatedPage:
        """See `AdapterStore.list_outdated`."""
        page = await self._blobs.folders(self._documents.keys.prefix, size=size, after=after)
        # The folder of the commits is no student's.
        students = sorted(filter(is_student_id, page.names))
        manifests: list[Manifest] = []
        for start in range(0, len(students), _PARALLEL_STUDENTS):
            batch = students[start : start + _PARALLEL_STUDENTS]
            manifests += filter(None, await asyncio.gather(*map(self._read_active, batch)))
        outdated = [manifest for manifest in manifests if manifest.recipe.base_digest != base_digest]
        return OutdatedPage(manifests=tuple(outdated), next_after=page.next_after)

    async def _read_active(self, student_id: str) -> Manifest | None:
        """Returns the manifest of the student's active version; None if there is none, or it does not parse."""
        try:
            active = (await self._documents.read_pointer(student_id)).active
            return None if active is None else await self._documents.read_manifest(active.ref)
        except ModelVersionNotFound:
            return None  # removed since
        except AdapterCorrupt:
            _log.warning("active_version_corrupt", tenant=self._documents.keys.tenant)
            return None

    def _verify(self, weights: bytes, manifest: Manifest) -> None:
        if not manifest.describes(weights):
            raise AdapterCorrupt(f"the weights of {manifest.ref} do not have the sha256 of the manifest")
        inspect(weights, lora=manifest.recipe.lora, limits=self._limits)

    async def _published(self, student_id: str) -> list[AdapterRef]:
        """Returns the versions that have weights and a manifest, oldest first."""
        keys = self._documents.keys_of(student_id)
        present = set(await self._blobs.keys(keys.prefix))
        refs = [self._documents.ref(student_id, version) for version in versions_in(keys, present)]
        # A version with weights alone is not published yet; one with a manifest alone is being removed.
        return [ref for ref in refs if ref.is_complete(present)]

    async def _read_manifests(self, refs: Sequence[AdapterRef]) -> list[Manifest]:
        """Reads manifests in this order; skips those that do not parse, which it logs, and those that are gone."""
        results = await asyncio.gather(*map(self._documents.read_manifest, refs), return_exceptions=True)
        manifests = []
        for ref, result in zip(refs, results, strict=True):
            if isinstance(result, AdapterCorrupt):
                # One corrupt version must not hide the good versions that a teacher would roll back to.
                _log.warning("adapter_manifest_corrupt", ref=str(ref))
            elif isinstance(result, ModelVersionNotFound):
                continue  # removed since the listing
            elif isinstance(result, BaseException):
                raise result
            else:
                manifests.append(result)
        return manifests
