"""A tenant's documents in the object store: manifests, commits and pointers, and how each of them may change.

A manifest never changes. A commit is created once, as a manifest or as void, and can become void later. A pointer
changes by compare-and-swap. Every document is validated when it is read.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from uuid import uuid4

from mesh.adapters.blobs import Blob, BlobConflict, BlobEntry, Blobs, RemovedObjects
from mesh.adapters.manifest import Manifest
from mesh.adapters.pointer import Pointer, PointerMove
from mesh.adapters.ref import AdapterRef, StudentKeys, TenantKeys
from mesh.errors import AdapterCorrupt, ModelVersionNotFound, PublishConflict
from mesh.log import get_logger

# One document has few writers, because one clone per student runs at a time. More conflicts than this are a fault.
TRIES = 16

# A pointer has 200 bytes. A manifest has 1.5 kB and its teaching policy, at most 50 kB: 50 skills with long names.
DOCUMENT_BYTES = 64 * 1024
# Larger documents were written before their size was limited, and must be readable to be removed.
_READ_BYTES = 2 * DOCUMENT_BYTES

# Commits read at the same time; fewer than the store's threads, so that other calls get a thread.
_PARALLEL_READS = 4

# The document that takes the place of a manifest; it names nobody.
VOID = b'{"schema": 1, "void": true}'

# Computes the new pointer from the current one. Called again each time the pointer moved meanwhile; raises to refuse.
Change = Callable[[Pointer], Awaitable[Pointer]]

_log = get_logger(__name__)


class Documents:
    """One tenant's documents.

    Every method raises `AdapterStoreUnavailable` when the store does not answer, `AdapterCorrupt` for a document that
    does not parse, and `InvalidField` for a malformed id.
    """

    def __init__(self, blobs: Blobs, *, tenant: str) -> None:
        self.blobs = blobs
        self.keys = TenantKeys(tenant=tenant)

    def keys_of(self, student_id: str) -> StudentKeys:
        """Returns the keys of one student of this tenant."""
        return StudentKeys(student_id=student_id, tenant=self.keys.tenant)

    def ref(self, student_id: str, version: int) -> AdapterRef:
        """Returns the name of a version of this tenant; the version need not exist."""
        return AdapterRef(student_id=student_id, version=version, tenant=self.keys.tenant)

    async def read_manifest(self, ref: AdapterRef) -> Manifest:
        """Returns the version's manifest.

        Raises:
            ModelVersionNotFound: The version has no manifest, or a void one.
            AdapterCorrupt: The manifest does not parse, or names another version.
        """
        blob = await self.read(ref.manifest_key)
        if blob is None or blob.data == VOID:
            raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
        manifest = Manifest.from_json(blob.data)
        if manifest.ref != ref:
            # Otherwise a folder copied by hand would serve one student's adapter to another.
            raise AdapterCorrupt(f"the manifest at {ref} names another version, {manifest.ref}")
        return manifest

    async def find_manifest(self, ref: AdapterRef) -> Manifest | None:
        """Returns the version's manifest, or None if there is no valid one."""
        try:
            return await self.read_manifest(ref)
        except (ModelVersionNotFound, AdapterCorrupt):
            return None

    async def is_gone(self, ref: AdapterRef) -> bool:
        """Whether the version has no manifest; a manifest that does not parse counts as one."""
        try:
            await self.read_manifest(ref)
        except ModelVersionNotFound:
            return True
        except AdapterCorrupt:
            return False
        return False

    async def has_weights(self, ref: AdapterRef) -> bool:
        """Whether the version's weights exist."""
        return ref.has_weights(await self.blobs.keys(f"{ref}/"))

    async def has_weights_of(self, manifest: Manifest) -> bool:
        """Whether the version's weights are those that the manifest describes.

        Reads all of them: the number may have been freed and taken by another clone, whose weights have the same size.
        """
        try:
            blob = await self.blobs.read(manifest.weights_key, limit_bytes=manifest.size_bytes)
        except AdapterCorrupt:
            return False
        return blob is not None and await asyncio.to_thread(manifest.describes, blob.data)

    async def read_commit(self, clone_id: str) -> bytes | None:
        """Returns the clone's commit, a manifest as JSON or `VOID`; None if the clone has not committed."""
        blob = await self.read(self.keys.commit(clone_id))
        return None if blob is None else blob.data

    async def is_void(self, clone_id: str) -> bool:
        """Whether the clone's commit is void."""
        return await self.read_commit(clone_id) == VOID

    async def commits(self, clone_ids: Collection[str] | None = None) -> AsyncIterator[Manifest]:
        """Reads the commits of these clones, or all of the tenant, that are not void.

        Skips and logs those that do not parse.
        """
        if clone_ids is not None:
            keys = [self.keys.commit(clone_id) for clone_id in clone_ids]
        else:
            # Void commits accumulate. No manifest is as short as they are, so they are recognized without being read.
            keys = [entry.key async for entry in self.blobs.entries(self.keys.commits) if entry.size_bytes > len(VOID)]
        for start in range(0, len(keys), _PARALLEL_READS):
            for manifest in await asyncio.gather(*map(self._find_commit, keys[start : start + _PARALLEL_READS])):
                if manifest is not None:
                    yield manifest

    async def _find_commit(self, key: str) -> Manifest | None:
        """Returns the commit at the key; None if it is void, gone or unreadable."""
        try:
            blob = await self.read(key)
            return None if blob is None or blob.data == VOID else Manifest.from_json(blob.data)
        except AdapterCorrupt:
            _log.warning("adapter_commit_corrupt", tenant=self.keys.tenant)
            return None

    async def create_once(self, key: str, data: bytes) -> bytes:
        """Writes the document if the key is free; returns the document at the key, the caller's or an earlier one.

        Raises:
            PublishConflict: Others kept creating and removing the document.
        """
        for _ in range(TRIES):
            try:
                await self.blobs.create(key, data)
            except BlobConflict:
                blob = await self.read(key)
                if blob is not None:
                    return blob.data
                # Two writes met and neither is visible yet, or the document was removed: the key is free again.
                continue
            return data
        raise PublishConflict(f"others kept creating and removing {key}")

    async def take_back(self, key: str, data: bytes) -> None:
        """Removes the caller's own blob, unless other bytes are at the key: another clone may have taken the number."""
        with suppress(BlobConflict, AdapterCorrupt):
            blob = await self.blobs.read(key, limit_bytes=len(data))
            if blob is not None and blob.data == data:
                await self.blobs.delete(key, etag=blob.etag)
                await self.blobs.forget(key)

    async def correct(self, key: str, data: bytes) -> None:
        """Replaces another document at the key by this one; one that is gone, as after a deletion, stays gone."""
        blob = await self.read(key)
        if blob is not None and blob.data != data:
            with suppress(BlobConflict):
                await self.blobs.replace(key, data, etag=blob.etag)
                await self.blobs.forget(key)

    async def remove(self, entries: Iterable[BlobEntry]) -> RemovedObjects:
        """Removes the listed blobs that have not changed since, in this order, with their past versions."""
        removed = RemovedObjects()
        for entry in entries:
            with suppress(BlobConflict):
                await self.blobs.delete(entry.key, etag=entry.etag)
                past_versions = await self.blobs.forget(entry.key)
                # A store that keeps past versions counts the deleted blob among them.
                removed += past_versions if past_versions.objects else RemovedObjects(objects=1, bytes=entry.size_bytes)
        return removed

    async def revoke(self, clone_id: str) -> RemovedObjects:
        """Makes the clone's commit void and removes its past versions.

        Raises:
            PublishConflict: Others kept changing the commit.
        """
        key = self.keys.commit(clone_id)
        for _ in range(TRIES):
            blob = await self.read(key)
            try:
                if blob is None:
                    await self.blobs.create(key, VOID)
                elif blob.data != VOID:
                    await self.blobs.replace(key, VOID, etag=blob.etag)
            except BlobConflict:
                continue
            return await self.blobs.forget(key)
        raise PublishConflict(f"others kept changing {key}")

    async def read_pointer(self, student_id: str) -> Pointer:
        """Returns the student's pointer; an empty pointer if the student has none."""
        return self.parse_pointer(await self.read(self.keys_of(student_id).active), student_id)

    async def move_pointer(self, student_id: str, change: Change) -> PointerMove:
        """Changes the pointer by compare-and-swap; removes a pointer that names no version any more.

        Raises:
            PublishConflict: Others kept moving the pointer.
        """
        mover = _PointerMover(self, student_id, change)
        try:
            return await mover.move()
        except Exception:
            await mover.take_back_placeholder()
            raise

    async def read(self, key: str) -> Blob | None:
        """Returns the document at the key, or None if there is none."""
        return await self.blobs.read(key, limit_bytes=_READ_BYTES)

    def parse_pointer(self, blob: Blob | None, student_id: str) -> Pointer:
        """Parses the student's pointer; None parses as an empty pointer."""
        if blob is None:
            return Pointer()
        pointer = Pointer.from_json(blob.data)
        active = pointer.active
        if active is not None and active.ref != self.ref(student_id, active.ref.version):
            raise AdapterCorrupt(f"the pointer of student {student_id} names another student's version, {active.ref}")
        return pointer


def versions_in(keys: StudentKeys, present: Iterable[str]) -> list[int]:
    """Returns the versions to which any of the present keys belongs, published or not, in ascending order."""
    return sorted({version for key in present if (version := keys.version_in(key)) is not None})


class _PointerMover:
    """Moves one student's pointer once.

    A new pointer starts as a placeholder that names no version; the version is looked up after that. So the version
    existed while the pointer did. If a deletion removes both meanwhile, the compare-and-swap fails, and only the
    placeholder can be left: this class removes it, or the sweeper does if the process dies.
    """

    def __init__(self, documents: Documents, student_id: str, change: Change) -> None:
        self._documents = documents
        self._student_id = student_id
        self._key = documents.keys_of(student_id).active
        self._change = change
        self._placeholder: bytes | None = None
        self._last_try: PointerMove | None = None

    async def move(self) -> PointerMove:
        """See `Documents.move_pointer`."""
        for _ in range(TRIES):
            blob = await self._documents.read(self._key)
            before = self._documents.parse_pointer(blob, self._student_id)
            if self._last_try is not None and before == self._last_try.after:
                # The last write succeeded, and its answer was lost.
                return self._last_try
            after = await self._change(before)
            with suppress(BlobConflict):
                if blob is not None or after.is_empty:
                    return await self._swap(before, after, replaces=blob)
                await self._create_placeholder()
        raise PublishConflict(
            f"others kept moving the pointer of student {self._student_id}", student_id=self._student_id
        )

    async def take_back_placeholder(self) -> None:
        """Removes the placeholder, unless another process has replaced it by a pointer."""
        if self._placeholder is not None:
            await self._documents.take_back(self._key, self._placeholder)

    async def _swap(self, before: Pointer, after: Pointer, *, replaces: Blob | None) -> PointerMove:
        blobs = self._documents.blobs
        if after.is_empty:
            after = Pointer()
        elif after != before:
            after = replace(after, nonce=uuid4().hex)
        self._last_try = PointerMove(before=before, after=after)
        if replaces is not None and after.is_empty:
            await blobs.delete(self._key, etag=replaces.etag)
            await blobs.forget(self._key)
        elif replaces is not None and after != before:
            await blobs.replace(self._key, after.to_json(), etag=replaces.etag)
        return self._last_try

    async def _create_placeholder(self) -> None:
        # A new nonce each time: a pointer that was removed and created again must not look unmoved.
        self._placeholder = Pointer(nonce=uuid4().hex).to_json()
        await self._documents.blobs.create(self._key, self._placeholder)
