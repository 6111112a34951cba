"""The adapter store: what it means to publish, to activate, to fetch and to remove a student's adapter.

A version exists once its manifest does, and the manifest is written after the weights: a crash in between publishes
nothing. Every write is conditional, so no version is ever overwritten and no two publishers undo each other. Reads
believe nothing they have not checked.

Knows no vendor: `Blobs` holds the bytes. Keeps nothing in memory; a cache is its caller's business.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from mesh.adapters.blobs import Blobs
from mesh.adapters.documents import Documents, versions_in
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Manifest, Recipe
from mesh.adapters.pointer import ActiveAdapter, Pointer
from mesh.adapters.publication import CloneVoided, Publication
from mesh.adapters.ref import DEFAULT_TENANT, AdapterRef
from mesh.adapters.retention import Removed, Retention
from mesh.adapters.sweep import Sweeper, Swept
from mesh.errors import AdapterCorrupt, AdapterIncompatible, ModelVersionNotFound, adapter_errors_name
from mesh.log import get_logger

__all__ = [
    "Activation",
    "AdapterStore",
    "Announce",
    "CloneVoided",
    "Removed",
    "StoredAdapter",
    "Swept",
    "VersionPage",
]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPage:
    """Some of a student's versions, newest first.

    Attributes:
        manifests: Of the versions.
        next_below: All versions of the next page are below this one; None if there is no next page.
    """

    manifests: tuple[Manifest, ...]
    next_below: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What one activation changed, read and written in the same compare-and-swap.

    Attributes:
        previous: The version that was active before; None if there was none.
        current: The version that is active now; equal to `previous` if nothing changed.
    """

    previous: ActiveAdapter | None
    current: ActiveAdapter


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
        self._limits = limits or AdapterLimits()
        self._announce = announce
        self._documents = Documents(blobs, tenant=tenant)
        self._publication = Publication(self._documents, limits=self._limits)
        self._retention = Retention(self._documents)
        self._sweeper = Sweeper(self._documents, self._publication)

    async def stage(self, student_id: str, weights: bytes, *, recipe: Recipe) -> Manifest:
        """Writes the next version without making it active.

        A clone makes one version however often it is staged: once one call committed, every other returns that
        version's manifest, whatever weights it brings. So a worker that does not know whether it crashed before or
        after may stage again.

        Raises:
            AdapterCorrupt, AdapterIncompatible: The weights fail inspection; nothing is written.
            CloneVoided: The clone may publish nothing any more, and what this call had written is gone.
            PublishConflict: Other publishers took one number after the other, or the clone is another student's.
        """
        with adapter_errors_name(student_id):
            return await self._publication.stage(student_id, weights, recipe=recipe)

    async def void(self, clone_id: str) -> Manifest | None:
        """From now on the clone publishes nothing, ever, whoever wakes up late; repeatable.

        Returns:
            What the clone had published before, as then it is too late: the version is whole and may be activated or
            retired. None if the clone has published nothing, or nothing that is still there.
        """
        return await self._publication.void(clone_id)

    async def activate(self, student_id: str, version: int, *, only_forward: bool = False) -> Activation:
        """Moves the pointer to a version.

        Args:
            student_id: The student.
            version: A published version, earlier or later than the active one.
            only_forward: Leave the pointer alone if it names a later version, as a publisher that was overtaken must.

        Raises:
            ModelVersionNotFound: The student has no such version, or it is being retired.
            AdapterCorrupt: The version's manifest or the pointer does not parse.
            PublishConflict: Others kept moving the pointer.
        """
        ref = self.ref(student_id, version)

        async def aim(pointer: Pointer) -> Pointer:
            # The version after the pointer: what is retired in between has moved the pointer, and this starts anew.
            target = ActiveAdapter(ref=ref, sha256=(await self._read_published(ref)).sha256)
            if version in pointer.retiring:
                raise ModelVersionNotFound(student_id=student_id, version=version)
            later = pointer.active.ref if only_forward and pointer.active is not None else ref
            # A version that is gone, as after a deletion that was cut off, overtakes nobody.
            if later.version > version and not await self._documents.is_gone(later):
                return pointer
            return replace(pointer, active=target)

        with adapter_errors_name(student_id, version):
            move = await self._documents.move_pointer(student_id, aim)
            assert move.after.active is not None, "neither branch above leaves the pointer empty"
            activation = Activation(previous=move.before.active, current=move.after.active)
            if activation.current.ref == ref:
                # Also if it was active already: whoever moved the pointer may have died before the announcement.
                await self._announce(activation.current)
            return activation

    async def resolve_active(self, student_id: str) -> ActiveAdapter | None:
        """The student's active version, or None if the student has none.

        Raises:
            AdapterCorrupt: The pointer does not parse.
        """
        with adapter_errors_name(student_id):
            return (await self._documents.read_pointer(student_id)).active

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
        with adapter_errors_name(ref.student_id, ref.version):
            manifest = await self._documents.read_manifest(ref)
            if sha256 not in (None, manifest.sha256):
                raise AdapterCorrupt(f"the manifest of {ref} tells another sha256 than the pointer")
            if manifest.size_bytes > self._limits.size_bytes:
                raise AdapterIncompatible(
                    f"{ref} has {manifest.size_bytes} bytes, above the limit of {self._limits.size_bytes}"
                )
            blob = await self._blobs.read(ref.weights_key, limit_bytes=manifest.size_bytes)
            if blob is None:
                if await self._documents.is_void(manifest.recipe.clone_id):
                    # It was removed between the two reads.
                    raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
                raise AdapterCorrupt(f"the weights of {ref} are missing")
            await asyncio.to_thread(self._verify, blob.data, manifest)
            return StoredAdapter(manifest=manifest, weights=blob.data)

    async def read_manifest(self, student_id: str, version: int) -> Manifest:
        """The manifest of one published version.

        Raises:
            ModelVersionNotFound: The student has no such version.
            AdapterCorrupt: The manifest does not parse.
        """
        with adapter_errors_name(student_id, version):
            return await self._read_published(self.ref(student_id, version))

    async def list_versions(self, student_id: str) -> list[Manifest]:
        """The manifests of all versions, oldest first; one that does not parse is left out and logged."""
        return await self._manifests(await self._published(student_id))

    async def list_page(self, student_id: str, *, size: int, below: int | None = None) -> VersionPage:
        """A page of the versions, newest first; one that does not parse is left out and logged.

        Args:
            student_id: The student.
            size: Most versions of the page.
            below: Only versions before this one; None starts with the newest.
        """
        refs = [ref for ref in await self._published(student_id) if below is None or ref.version < below][::-1]
        manifests = await self._manifests(refs[:size])
        return VersionPage(manifests=tuple(manifests), next_below=refs[size - 1].version if len(refs) > size else None)

    async def pin(self, student_id: str, version: int) -> None:
        """Keeps a version from being retired; repeatable.

        Raises:
            ModelVersionNotFound: The student has no such version, or it is being retired.
            PublishConflict: Others kept moving the pointer.
        """
        with adapter_errors_name(student_id, version):
            await self._retention.pin(student_id, version)

    async def unpin(self, student_id: str, version: int) -> None:
        """Lets a version be retired again; repeatable.

        Raises:
            ModelVersionNotFound: The student has no such version, or it is being retired.
            PublishConflict: Others kept moving the pointer.
        """
        with adapter_errors_name(student_id, version):
            await self._retention.unpin(student_id, version)

    async def pinned(self, student_id: str) -> frozenset[int]:
        """The versions that are pinned."""
        with adapter_errors_name(student_id):
            return (await self._documents.read_pointer(student_id)).pinned

    async def retire(self, student_id: str, *, keep: int) -> list[int]:
        """Removes all but the newest versions, the active and the pinned ones; returns the numbers of the removed.

        A brain that holds a removed version goes on answering with it; whoever asks for it anew is told that it is
        gone. A call that is cut off is finished by the next one.

        Args:
            student_id: The student.
            keep: How many of the newest versions stay, 1 or more.

        Raises:
            PublishConflict: Others moved the pointer again and again.
        """
        with adapter_errors_name(student_id):
            return await self._retention.retire(student_id, keep=keep)

    async def delete_student(self, student_id: str) -> Removed:
        """Removes every object of the student, past versions included, and makes the commits of its clones void.

        Repeatable, and to be repeated if it was cut off. A clone that has not committed yet can't be known here: void
        it before, or it may publish afterwards, as the first one of a new student.

        Returns:
            What this call removed.

        Raises:
            PublishConflict: Others kept writing for this student.
        """
        with adapter_errors_name(student_id):
            return await self._retention.delete_student(student_id)

    async def sweep(self, *, older_than_seconds: float) -> Swept:
        """Removes what dead workers left behind in the whole tenant; repeatable, also while others work.

        Reads every commit that is not void, so once an hour is often.

        Args:
            older_than_seconds: What is younger stays; above the longest time that a worker may take to publish.
        """
        return await self._sweeper.sweep(older_than_seconds=older_than_seconds)

    def ref(self, student_id: str, version: int) -> AdapterRef:
        """Names a version of this tenant, whether or not it exists."""
        return self._documents.ref(student_id, version)

    async def check(self) -> None:
        """Returns if the store answers; cheap enough for a health check."""
        await self._blobs.check()

    async def _published(self, student_id: str) -> list[AdapterRef]:
        """The versions whose weights and manifest are there, oldest first."""
        keys = self._documents.keys_of(student_id)
        found = set(await self._blobs.keys(keys.prefix))
        refs = [self.ref(student_id, version) for version in versions_in(keys, found)]
        # Weights alone are not published yet, a manifest alone is on its way out.
        return [ref for ref in refs if {ref.weights_key, ref.manifest_key} <= found]

    async def _manifests(self, refs: Sequence[AdapterRef]) -> list[Manifest]:
        """The manifests of versions, in the same order, without those that do not parse or are gone."""
        results = await asyncio.gather(*map(self._documents.read_manifest, refs), return_exceptions=True)
        return _sound(refs, results)

    async def _read_published(self, ref: AdapterRef) -> Manifest:
        """The manifest of a version whose weights are there too."""
        if not await self._documents.has_weights(ref):
            raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
        return await self._documents.read_manifest(ref)

    def _verify(self, weights: bytes, manifest: Manifest) -> None:
        if not manifest.describes(weights):
            raise AdapterCorrupt(f"the weights of {manifest.ref} fail their sha256")
        inspect(weights, lora=manifest.recipe.lora, limits=self._limits)


def _sound(refs: Sequence[AdapterRef], results: Sequence[Manifest | BaseException]) -> list[Manifest]:
    manifests = []
    for ref, result in zip(refs, results, strict=True):
        if isinstance(result, AdapterCorrupt):
            # One bad version must not hide the good ones that a teacher would roll back to.
            _log.warning("adapter_manifest_corrupt", ref=str(ref))
        elif isinstance(result, ModelVersionNotFound):
            continue  # removed since it was listed
        elif isinstance(result, BaseException):
            raise result
        else:
            manifests.append(result)
    return manifests
