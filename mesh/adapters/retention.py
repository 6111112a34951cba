"""Retention: which versions of a student stay, and how all that there is of a student goes.

A version goes in this order: the pointer says that it is retiring, its clone's commit becomes void, its manifest goes,
then its weights. So it is whole or gone, and can't become active on its way out. A brain that holds it keeps answering
with it: there it is known by its sha256.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mesh.adapters.blobs import Erased
from mesh.adapters.documents import TRIES, Documents, versions_in
from mesh.adapters.pointer import Pointer
from mesh.adapters.ref import AdapterRef, StudentKeys
from mesh.errors import AdapterCorrupt, ModelVersionNotFound, PublishConflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What a deletion removed.

    Attributes:
        versions: Versions of the student's adapter that were there.
        objects: Objects of the store, past versions of them included.
        bytes: Their size.
    """

    versions: int
    objects: int
    bytes: int


class Retention:
    """Pins, retires and deletes; `AdapterStore` says what these mean."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def pin(self, student_id: str, version: int, *, pinned: bool) -> None:
        """See `AdapterStore.pin`."""
        ref = self._documents.ref(student_id, version)

        async def change(pointer: Pointer) -> Pointer:
            await self._documents.read_manifest(ref)
            if version in pointer.retiring:
                raise ModelVersionNotFound(student_id=student_id, version=version)
            return replace(pointer, pinned=pointer.pinned | {version} if pinned else pointer.pinned - {version})

        await self._documents.change_pointer(student_id, change)

    async def retire(self, student_id: str, *, keep: int) -> list[int]:
        """See `AdapterStore.retire`."""
        if keep < 1:
            # Numbers grow because the newest stays.
            raise ValueError("at least one version is kept")
        keys = self._documents.keys_of(student_id)

        async def condemn(pointer: Pointer) -> Pointer:
            found = set(await self._documents.blobs.keys(keys.prefix))
            published = [
                version
                for version in versions_in(keys, found)
                if self._documents.ref(student_id, version).manifest_key in found
            ]
            return replace(pointer, retiring=pointer.retiring | (set(published[:-keep]) - pointer.held))

        # What an earlier call left behind when it was cut off is among them.
        retiring = (await self._documents.change_pointer(student_id, condemn)).retiring
        for version in sorted(retiring):
            await self._remove(self._documents.ref(student_id, version))

        async def forget(pointer: Pointer) -> Pointer:
            return replace(pointer, retiring=pointer.retiring - retiring)

        await self._documents.change_pointer(student_id, forget)
        return sorted(retiring)

    async def delete_student(self, student_id: str) -> Removed:
        """See `AdapterStore.delete_student`."""
        keys = self._documents.keys_of(student_id)
        blobs = self._documents.blobs
        # First, so that nobody is sent to a version that is half gone.
        erased = await blobs.erase(keys.active)
        versions: set[int] = set()
        for _ in range(TRIES):
            found = await blobs.keys(keys.prefix)
            if not found:
                erased += await blobs.forget(keys.prefix)
                return Removed(versions=len(versions), objects=erased.objects, bytes=erased.bytes)
            refs = [self._documents.ref(student_id, version) for version in versions_in(keys, found)]
            versions.update(ref.version for ref in refs if ref.manifest_key in found)
            erased += await self._withdraw(refs)
            # By folder, as what appeared since may be a version whose clone is not yet known here.
            for prefix in {_folder_of(keys, key) for key in found}:
                erased += await blobs.erase(prefix)
        raise PublishConflict(f"others kept writing for student {student_id}", student_id=student_id)

    async def _remove(self, ref: AdapterRef) -> None:
        await self._withdraw([ref])
        await self._documents.blobs.erase(ref.manifest_key)
        await self._documents.blobs.erase(f"{ref}/")

    async def _withdraw(self, refs: Iterable[AdapterRef]) -> Erased:
        """Makes the commits of these versions void; weights without a manifest go here already."""
        erased = Erased()
        unknown = set()
        for ref in refs:
            try:
                manifest = await self._documents.read_manifest(ref)
            except (ModelVersionNotFound, AdapterCorrupt):
                # Before the look at the commits: whoever commits after it then misses the weights.
                erased += await self._documents.blobs.erase(ref.weights_key)
                unknown.add(ref)
            else:
                erased += await self._documents.revoke(manifest.recipe.clone_id)
        if unknown:
            # A clone that was cut off between its commit and its manifest, or is on its way there. Rare, as it costs a
            # look at every commit of the tenant.
            async for manifest in self._documents.commits():
                if manifest.ref in unknown:
                    erased += await self._documents.revoke(manifest.recipe.clone_id)
        return erased


def _folder_of(keys: StudentKeys, key: str) -> str:
    """The folder of the version that the key belongs to, or the key itself."""
    name, slash, _ = key.removeprefix(keys.prefix).partition("/")
    return f"{keys.prefix}{name}{slash}"
