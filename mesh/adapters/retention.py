"""Retention: which versions of a student stay, and how all that there is of a student goes.

A version goes in this order: the pointer says that it is retiring, its clone's commit becomes void, its manifest goes,
then its weights. So it is whole or gone, and can't become active on its way out. A brain that holds it keeps answering
with it: there it is known by its sha256.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from mesh.adapters.blobs import Erased
from mesh.adapters.documents import TRIES, VOID, Documents, versions_in
from mesh.adapters.pointer import Pointer
from mesh.adapters.ref import AdapterRef
from mesh.errors import ModelVersionNotFound, PublishConflict


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

    async def pin(self, student_id: str, version: int) -> None:
        """See `AdapterStore.pin`."""
        await self._change_pins(student_id, version, lambda pins: pins | {version})

    async def unpin(self, student_id: str, version: int) -> None:
        """See `AdapterStore.unpin`."""
        await self._change_pins(student_id, version, lambda pins: pins - {version})

    async def retire(self, student_id: str, *, keep: int) -> list[int]:
        """See `AdapterStore.retire`."""
        if keep < 1:
            # Numbers grow because the newest stays.
            raise ValueError("at least one version is kept")
        keys = self._documents.keys_of(student_id)

        async def condemn(pointer: Pointer) -> Pointer:
            found = set(await self._documents.blobs.keys(keys.prefix))
            refs = [self._documents.ref(student_id, version) for version in versions_in(keys, found)]
            whole = [ref for ref in refs if {ref.weights_key, ref.manifest_key} <= found]
            # Read, as what a sweeper condemned looks whole too, and would count as the newest.
            published = [ref.version for ref in whole if await self._documents.find_manifest(ref) is not None]
            return replace(pointer, retiring=pointer.retiring | (set(published[:-keep]) - pointer.held))

        # What an earlier call left behind when it was cut off is among them.
        retiring = (await self._documents.move_pointer(student_id, condemn)).after.retiring
        for version in sorted(retiring):
            await self._remove(self._documents.ref(student_id, version))

        async def forget(pointer: Pointer) -> Pointer:
            return replace(pointer, retiring=pointer.retiring - retiring)

        await self._documents.move_pointer(student_id, forget)
        return sorted(retiring)

    async def delete_student(self, student_id: str) -> Removed:
        """See `AdapterStore.delete_student`."""
        keys = self._documents.keys_of(student_id)
        blobs = self._documents.blobs
        # First, so that nobody is sent to a version that is half gone.
        erased = await blobs.erase(keys.active)
        versions: set[int] = set()
        for _ in range(TRIES):
            entries = [entry async for entry in blobs.entries(keys.prefix)]
            if not entries:
                erased += await blobs.forget(keys.prefix)
                # A commit that was made void by somebody who was then cut off may still tell in its past what it was.
                await blobs.forget(self._documents.keys.commits)
                return Removed(versions=len(versions), objects=erased.objects, bytes=erased.bytes)
            found = {entry.key for entry in entries}
            refs = [self._documents.ref(student_id, version) for version in versions_in(keys, found)]
            versions.update(ref.version for ref in refs if ref.manifest_key in found)
            erased += await self._withdraw(refs)
            # Only what was listed, as what appeared since may be of a clone that is not known here yet; the manifests
            # first, or a reader would take what is half gone for corrupt.
            manifests = {ref.manifest_key for ref in refs}
            erased += await self._documents.remove(sorted(entries, key=lambda entry: entry.key not in manifests))
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
        """Removes what is there of a version that is retiring, and nothing that comes there later."""
        blobs = self._documents.blobs
        entries = [entry async for entry in blobs.entries(f"{ref}/")]
        manifest = await self._documents.find_manifest(ref)
        if ref.version not in (await self._documents.read_pointer(ref.student_id)).retiring:
            # Others were faster, and the student may have been deleted and have a new version with this number.
            return
        if manifest is not None:
            await self._documents.revoke(manifest.recipe.clone_id)
        await self._documents.remove(sorted(entries, key=lambda entry: entry.key != ref.manifest_key))

    async def _withdraw(self, refs: Iterable[AdapterRef]) -> Erased:
        """Makes the commits of these versions void."""
        erased = Erased()
        unknown = set()
        for ref in refs:
            manifest = await self._documents.find_manifest(ref)
            if manifest is None:
                # Before the look at the commits: whoever commits after it can't publish any more.
                await self._documents.create_once(ref.manifest_key, VOID)
                manifest = await self._documents.find_manifest(ref)
            if manifest is None:
                unknown.add(ref)
            else:
                erased += await self._documents.revoke(manifest.recipe.clone_id)
        if unknown:
            # A clone that was cut off between its commit and its manifest, or is on its way there. Rare, as it costs a
            # look at every commit of the tenant.
            async for commit in self._documents.commits():
                if commit.manifest.ref in unknown:
                    erased += await self._documents.revoke(commit.manifest.recipe.clone_id)
        return erased
