"""Retention: which versions of a student stay, and how a student is deleted.

A version is removed in this order: the pointer lists it as retiring, its clone's commit becomes void, its manifest is
removed, then the rest. So it is complete or gone, and cannot become active meanwhile. A brain that holds it keeps
answering with it, because a brain knows it by its sha256.
"""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from mesh.adapters.blobs import RemovedObjects
from mesh.adapters.documents import TRIES, VOID, Documents, versions_in
from mesh.adapters.pointer import Pointer
from mesh.adapters.ref import AdapterRef
from mesh.errors import AdapterCorrupt, ModelVersionNotFound, PublishConflict


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedAdapters:
    """What a deletion removed.

    Attributes:
        versions: Number of published versions of the student's adapter.
        objects: Number of objects in the store, their past versions included.
        bytes: Their total size.
    """

    versions: int
    objects: int
    bytes: int


class Retention:
    """Pins, retires and deletes; `AdapterStore` documents each method."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def pin(self, student_id: str, version: int) -> None:
        """See `AdapterStore.pin`."""
        await self._change_pins(student_id, version, lambda pins: pins | {version})

    async def unpin(self, student_id: str, version: int) -> None:
        """See `AdapterStore.unpin`."""
        await self._change_pins(student_id, version, lambda pins: pins - {version})

    async def retire(self, student_id: str, *, keep: int) -> list[int]:
        """See `AdapterStore.retire`."""
        if keep < 1:
            # Numbers grow because the newest version stays.
            raise ValueError(f"keep must be 1 or more, not {keep}")
        keys = self._documents.keys_of(student_id)

        async def condemn(pointer: Pointer) -> Pointer:
            present = set(await self._documents.blobs.keys(keys.prefix))
            refs = [self._documents.ref(student_id, version) for version in versions_in(keys, present)]
            complete = [ref for ref in refs if ref.is_complete(present)]
            # Manifests are read, because a void one must not count as the newest version.
            versions = [ref.version for ref in complete if await self._documents.find_manifest(ref) is not None]
            return replace(pointer, retiring=pointer.retiring | (set(versions[:-keep]) - pointer.protected))

        # Includes what an earlier call left behind when it was cut off.
        retiring = (await self._documents.move_pointer(student_id, condemn)).after.retiring
        for version in sorted(retiring):
            await self._remove(self._documents.ref(student_id, version))

        async def forget(pointer: Pointer) -> Pointer:
            return replace(pointer, retiring=pointer.retiring - retiring)

        await self._documents.move_pointer(student_id, forget)
        return sorted(retiring)

    async def delete_student(self, student_id: str, *, clone_ids: Collection[str]) -> RemovedAdapters:
        """See `AdapterStore.delete_student`."""
        keys = self._documents.keys_of(student_id)
        blobs = self._documents.blobs
        # First, so that no reader is sent to a version that is being removed.
        removed = await blobs.erase(keys.active)
        versions: set[int] = set()
        for _ in range(TRIES):
            entries = [entry async for entry in blobs.entries(keys.prefix)]
            if not entries:
                removed += await blobs.forget(keys.prefix)
                # A commit may have been made void by a process that died before it removed the past version.
                for clone_id in clone_ids:
                    await blobs.forget(self._documents.keys.commit(clone_id))
                return RemovedAdapters(versions=len(versions), objects=removed.objects, bytes=removed.bytes)
            present = {entry.key for entry in entries}
            refs = [self._documents.ref(student_id, version) for version in versions_in(keys, present)]
            versions.update(ref.version for ref in refs if ref.manifest_key in present)
            removed += await self._withdraw(refs, clone_ids)
            # Only the listed blobs: later ones may belong to a clone whose commit has not been made void. Manifests
            # first, or a reader would find a version without weights and call it corrupt.
            manifests = {ref.manifest_key for ref in refs}
            removed += await self._documents.remove(sorted(entries, key=lambda entry: entry.key not in manifests))
        raise PublishConflict(f"others kept writing for student {student_id}", student_id=student_id)

    async def _change_pins(
        self, student_id: str, version: int, change: Callable[[frozenset[int]], frozenset[int]]
    ) -> None:
        ref = self._documents.ref(student_id, version)

        async def change_pointer(pointer: Pointer) -> Pointer:
            await self._documents.read_manifest(ref)
            if version in pointer.retiring:
                raise ModelVersionNotFound(student_id=student_id, version=version)
            return replace(pointer, pinned=change(pointer.pinned))

        await self._documents.move_pointer(student_id, change_pointer)

    async def _remove(self, ref: AdapterRef) -> None:
        """Removes the present blobs of a retiring version, and none that are written later."""
        blobs = self._documents.blobs
        entries = [entry async for entry in blobs.entries(f"{ref}/")]
        manifest = await self._documents.find_manifest(ref)
        if ref.version not in (await self._documents.read_pointer(ref.student_id)).retiring:
            # Another process was faster. The student may even have been deleted and have a new version of this number.
            return
        if manifest is not None:
            await self._documents.revoke(manifest.recipe.clone_id)
        await self._documents.remove(sorted(entries, key=lambda entry: entry.key != ref.manifest_key))

    async def _withdraw(self, refs: Iterable[AdapterRef], clone_ids: Collection[str]) -> RemovedObjects:
        """Makes the commits of these versions void."""
        removed = RemovedObjects()
        refs_without_manifest = set()
        for ref in refs:
            manifest = await self._documents.find_manifest(ref)
            if manifest is None:
                # Before the commits are read: a clone that commits later finds the key taken and cannot publish.
                with suppress(AdapterCorrupt):
                    # One that can't be read takes the key as well.
                    await self._documents.create_once(ref.manifest_key, VOID)
                manifest = await self._documents.find_manifest(ref)
            if manifest is None:
                refs_without_manifest.add(ref)
            else:
                removed += await self._documents.revoke(manifest.recipe.clone_id)
        # A clone is between its weights and its manifest, or died there, which is rare. If none of the known clones has
        # committed the version, all commits of the tenant are read, as another clone may have.
        for known_ids in (clone_ids, None):
            if refs_without_manifest:
                commits = self._documents.commits(known_ids)
                manifests = [manifest async for manifest in commits if manifest.ref in refs_without_manifest]
                for manifest in manifests:
                    removed += await self._documents.revoke(manifest.recipe.clone_id)
                refs_without_manifest -= {manifest.ref for manifest in manifests}
        return removed
