"""A tenant's documents in the object store: manifests, commits and pointers, and how each of them may change.

A manifest never changes. A commit is created once, as a manifest or as void, and can later become void. A pointer is
moved by compare-and-swap. Reads believe nothing they have not checked.

Knows nothing of weights.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import uuid4

from mesh.adapters.blobs import Blob, BlobConflict, Blobs, Entry, Erased
from mesh.adapters.manifest import Manifest
from mesh.adapters.pointer import Pointer, PointerMove
from mesh.adapters.ref import AdapterRef, StudentKeys, TenantKeys
from mesh.errors import AdapterCorrupt, ModelVersionNotFound, PublishConflict
from mesh.log import get_logger

# Writers of one document are few (one clone of a student runs at a time), so a conflict that persists is a fault, not a
# race.
TRIES = 16

# A manifest has about 1.5 kB and a pointer 200 bytes.
_LIMIT_BYTES = 64 * 1024

# At the same time, when all commits are read: fewer than the store's threads, so that others get their turn.
_READS = 4

# Stands where a manifest would, and names nobody.
VOID = b'{"schema": 1, "void": true}'

# Says what a pointer should become. Is called again whenever the pointer moved in between, and raises to refuse.
Change = Callable[[Pointer], Awaitable[Pointer]]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What a clone published.

    Attributes:
        manifest: The version's manifest. Its own document has the same bytes.
        etag: Of the commit. Where a store's tags are hashes of the bytes, that of the manifest's document is equal.
    """

    manifest: Manifest
    etag: str


class Documents:
    """One tenant's documents.

    Every method raises `AdapterStoreUnavailable` when the store does not answer, `AdapterCorrupt` for a document that
    does not parse, and `InvalidField` for a malformed id.
    """

    def __init__(self, blobs: Blobs, *, tenant: str) -> None:
        self.blobs = blobs
        self.keys = TenantKeys(tenant=tenant)

    def keys_of(self, student_id: str) -> StudentKeys:
        """The keys of one student of this tenant."""
        return StudentKeys(student_id=student_id, tenant=self.keys.tenant)

    def ref(self, student_id: str, version: int) -> AdapterRef:
        """Names a version of this tenant, whether or not it exists."""
        return AdapterRef(student_id=student_id, version=version, tenant=self.keys.tenant)

    async def read_manifest(self, ref: AdapterRef) -> Manifest:
        """The version's manifest.

        Raises:
            ModelVersionNotFound: There is none, or it is void.
            AdapterCorrupt: It is that of another version.
        """
        blob = await self.read(ref.manifest_key)
        if blob is None or blob.data == VOID:
            raise ModelVersionNotFound(student_id=ref.student_id, version=ref.version)
        manifest = Manifest.from_json(blob.data)
        if manifest.ref != ref:
            # Else a folder copied by hand would serve one student's adapter to another.
            raise AdapterCorrupt(f"the manifest of {ref} is that of another version")
        return manifest

    async def find_manifest(self, ref: AdapterRef) -> Manifest | None:
        """The same, or None where there is none that can be believed."""
        try:
            return await self.read_manifest(ref)
        except (ModelVersionNotFound, AdapterCorrupt):
            return None

    async def is_gone(self, ref: AdapterRef) -> bool:
        """Whether the version is not published, or not any more; one that does not parse is still there."""
        try:
            await self.read_manifest(ref)
        except ModelVersionNotFound:
            return True
        except AdapterCorrupt:
            return False
        return False

    async def has_weights(self, ref: AdapterRef) -> bool:
        """Whether the version's weights are there."""
        return ref.weights_key in await self.blobs.keys(ref.weights_key)

    async def has_weights_of(self, manifest: Manifest) -> bool:
        """Whether the version's weights are those that the manifest describes.

        Reads all of them: the number may have been freed and taken by another clone, whose weights have the same size.
        """
        try:
            blob = await self.blobs.read(manifest.ref.weights_key, limit_bytes=manifest.size_bytes)
        except AdapterCorrupt:
            return False
        return blob is not None and await asyncio.to_thread(manifest.describes, blob.data)

    async def read_commit(self, clone_id: str) -> bytes | None:
        """What the clone committed, as JSON or `VOID`, or None if it is still open."""
        blob = await self.read(self.keys.commit(clone_id))
        return None if blob is None else blob.data

    async def is_void(self, clone_id: str) -> bool:
        """Whether the clone publishes nothing any more."""
        return await self.read_commit(clone_id) == VOID

    async def commits(self) -> AsyncIterator[Commit]:
        """What all clones of the tenant published and is not void; a commit that does not parse is logged."""
        # A manifest is never as short as that, so the void ones, of which there are ever more, need not be read.
        found = [entry.key async for entry in self.blobs.entries(self.keys.commits) if entry.size_bytes > len(VOID)]
        for start in range(0, len(found), _READS):
            for blob in await asyncio.gather(*map(self.read, found[start : start + _READS])):
                if blob is None or blob.data == VOID:
                    continue
                try:
                    yield Commit(manifest=Manifest.from_json(blob.data), etag=blob.etag)
                except AdapterCorrupt:
                    _log.warning("adapter_commit_corrupt", tenant=self.keys.tenant)

    async def create_once(self, key: str, data: bytes) -> bytes:
        """Writes the document if the key is free, and returns what is there.

        Raises:
            PublishConflict: It was taken and free in turns.
        """
        for _ in range(TRIES):
            try:
                await self.blobs.create(key, data)
            except BlobConflict:
                blob = await self.read(key)
                if blob is not None:
                    return blob.data
                # Two writes met and neither is there yet, or someone removed it: the key is free again.
                continue
            return data
        raise PublishConflict(f"{key} was taken and free in turns")

    async def take_back(self, key: str, data: bytes) -> None:
        """Removes what was written here, if it is still that: a number that was freed may be another's already."""
        with suppress(BlobConflict, AdapterCorrupt):
            blob = await self.blobs.read(key, limit_bytes=len(data))
            if blob is not None and blob.data == data:
                await self.blobs.delete(key, etag=blob.etag)
                await self.blobs.forget(key)

    async def remove(self, entries: Iterable[Entry]) -> Erased:
        """Removes, in this order, what was listed and has not changed since, and its past."""
        removed = Erased()
        for entry in entries:
            with suppress(BlobConflict):
                await self.blobs.delete(entry.key, etag=entry.etag)
                past = await self.blobs.forget(entry.key)
                # A store that keeps the past counts the deleted blob among it.
                removed += past if past.objects else Erased(objects=1, bytes=entry.size_bytes)
        return removed

    async def revoke(self, clone_id: str) -> Erased:
        """Makes the clone's commit void, whatever it was, and forgets what it said.

        Raises:
            PublishConflict: Others changed it again and again.
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
        raise PublishConflict(f"{key} kept changing")

    async def read_pointer(self, student_id: str) -> Pointer:
        """The student's pointer; an empty one if there is none."""
        return self.parse_pointer(await self.read(self.keys_of(student_id).active), student_id)

    async def move_pointer(self, student_id: str, change: Change) -> PointerMove:
        """Changes the pointer by compare-and-swap; a pointer that names nothing any more is removed.

        Raises:
            PublishConflict: Others kept moving it.
        """
        mover = _PointerMover(self, student_id, change)
        try:
            return await mover.move()
        except Exception:
            await mover.take_back_placeholder()
            raise

    async def read(self, key: str) -> Blob | None:
        """The document at the key, or None if there is none."""
        return await self.blobs.read(key, limit_bytes=_LIMIT_BYTES)

    def parse_pointer(self, blob: Blob | None, student_id: str) -> Pointer:
        """The student's pointer that is in the blob; an empty one if there is no blob."""
        if blob is None:
            return Pointer()
        pointer = Pointer.from_json(blob.data)
        active = pointer.active
        if active is not None and active.ref != self.ref(student_id, active.ref.version):
            raise AdapterCorrupt(f"the pointer of student {student_id} names another student's version")
        return pointer


def versions_in(keys: StudentKeys, found: Iterable[str]) -> list[int]:
    """The versions of which something is there, published or not, in ascending order."""
    return sorted({version for key in found if (version := keys.version_in(key)) is not None})


class _PointerMover:
    """Moves one student's pointer once.

    A new pointer starts as a placeholder that names no version, and only then are the versions looked at that it shall
    name. So a version was there while the pointer was. If a deletion removes both in between, the compare-and-swap
    fails, and at most the placeholder is left: it is taken back here, or by the sweeper if this process dies.
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
                    return await self._swap(before, after, seen=blob)
                await self._create_placeholder()
        raise PublishConflict(f"the pointer of student {self._student_id} kept moving", student_id=self._student_id)

    async def take_back_placeholder(self) -> None:
        """Removes the placeholder that was created here, unless it became a pointer."""
        if self._placeholder is not None:
            await self._documents.take_back(self._key, self._placeholder)

    async def _swap(self, before: Pointer, after: Pointer, *, seen: Blob | None) -> PointerMove:
        blobs = self._documents.blobs
        if after.is_empty:
            after = Pointer()
        elif after != before:
            after = replace(after, nonce=uuid4().hex)
        self._last_try = PointerMove(before=before, after=after)
        if seen is not None and after.is_empty:
            await blobs.delete(self._key, etag=seen.etag)
            await blobs.forget(self._key)
        elif seen is not None and after != before:
            await blobs.replace(self._key, after.to_json(), etag=seen.etag)
        return self._last_try

    async def _create_placeholder(self) -> None:
        # A new nonce each time, or a pointer that went and came back would look as if it had never moved.
        self._placeholder = Pointer(nonce=uuid4().hex).to_json()
        await self._documents.blobs.create(self._key, self._placeholder)
