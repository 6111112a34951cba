"""Blobs in memory that behave like S3, with and without versioning, and that pause before each atomic step.

For tests that try many interleavings. `test_s3.py` proves the same behaviour of the real store.
"""

import hashlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import count

from mesh.adapters.blobs import Blob, BlobConflict, BlobEntry, FolderPage, RemovedObjects
from mesh.errors import AdapterCorrupt

# Awaited before each step that is atomic in the store.
Pause = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectVersion:
    """One version of an object; a deletion marker if it has no data."""

    version_id: int
    data: bytes | None


class MemoryBucket:
    """One bucket, which several processes share."""

    def __init__(self, *, keeps_past: bool) -> None:
        self.keeps_past = keeps_past
        self.ids = count(1)
        # Oldest first.
        self.objects: defaultdict[str, list[ObjectVersion]] = defaultdict(list)

    def latest(self, key: str) -> bytes | None:
        """Returns the data at the key, or None."""
        versions = self.objects.get(key)
        return versions[-1].data if versions else None

    def put(self, key: str, data: bytes | None) -> None:
        """Writes the data, or deletes if it is None; keeps past versions if the bucket does."""
        if not self.keeps_past:
            self.objects.pop(key, None)
        if data is not None or self.keeps_past:
            self.objects[key].append(ObjectVersion(version_id=next(self.ids), data=data))

    def versions(self, prefix: str) -> list[tuple[str, ObjectVersion, bool]]:
        """Returns all versions with their keys, and whether each is the latest."""
        return [
            (key, version, version is versions[-1])
            for key, versions in sorted(self.objects.items())
            if key.startswith(prefix)
            for version in versions
        ]

    def remove(self, versions: Iterable[tuple[str, ObjectVersion]]) -> None:
        """Removes versions by their ids."""
        for key, version in versions:
            rest = [other for other in self.objects.get(key, []) if other.version_id != version.version_id]
            if rest:
                self.objects[key] = rest
            else:
                self.objects.pop(key, None)


class MemoryBlobs:
    """One process's access to a bucket."""

    def __init__(self, bucket: MemoryBucket, *, pause: Pause | None = None) -> None:
        self._bucket = bucket
        self._pause = pause or _go_on

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        await self._pause()
        data = self._bucket.latest(key)
        if data is not None and len(data) > limit_bytes:
            raise AdapterCorrupt(f"{key} has {len(data)} bytes, more than {limit_bytes}")
        return None if data is None else Blob(data=data, etag=_etag(data))

    async def create(self, key: str, data: bytes) -> None:
        await self._pause()
        if self._bucket.latest(key) is not None:
            raise BlobConflict
        self._bucket.put(key, data)

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        await self._pause()
        self._expect(key, etag)
        self._bucket.put(key, data)

    async def delete(self, key: str, *, etag: str) -> None:
        await self._pause()
        self._expect(key, etag)
        self._bucket.put(key, None)

    async def keys(self, prefix: str) -> list[str]:
        return [entry.key async for entry in self.entries(prefix)]

    async def entries(self, prefix: str) -> AsyncIterator[BlobEntry]:
        await self._pause()
        present = [
            (key, data)
            for key in sorted(self._bucket.objects)
            if key.startswith(prefix) and (data := self._bucket.latest(key)) is not None
        ]
        for key, data in present:
            yield BlobEntry(key=key, etag=_etag(data), size_bytes=len(data), age_seconds=0)

    async def folders(self, prefix: str, *, size: int, after: str | None = None) -> FolderPage:
        keys = await self.keys(prefix)
        names = sorted({key.removeprefix(prefix).partition("/")[0] for key in keys})
        later_names = [name for name in names if after is None or name > after]
        next_after = later_names[size - 1] if len(later_names) > size else None
        return FolderPage(names=tuple(later_names[:size]), next_after=next_after)

    async def erase(self, prefix: str) -> RemovedObjects:
        erased = RemovedObjects()
        while True:
            await self._pause()
            listed = self._bucket.versions(prefix)
            if not listed:
                return erased
            for latest in (False, True):
                await self._pause()
                self._bucket.remove((key, version) for key, version, is_latest in listed if is_latest is latest)
            erased += _total(version for _, version, _ in listed)

    async def forget(self, prefix: str) -> RemovedObjects:
        return await self._forget(prefix, only_deleted=False)

    async def forget_deleted(self, prefix: str) -> RemovedObjects:
        return await self._forget(prefix, only_deleted=True)

    async def _forget(self, prefix: str, *, only_deleted: bool) -> RemovedObjects:
        await self._pause()
        listed = self._bucket.versions(prefix)
        deleted = {key for key, version, is_latest in listed if is_latest and version.data is None}
        past = [
            (key, version)
            for key, version, is_latest in listed
            if not is_latest and (key in deleted or not only_deleted)
        ]
        markers = [(key, version) for key, version, is_latest in listed if is_latest and key in deleted]
        for versions in (past, markers):
            await self._pause()
            self._bucket.remove(versions)
        return _total(version for _, version in [*past, *markers])

    async def check(self) -> None:
        await self._pause()

    def _expect(self, key: str, etag: str) -> None:
        data = self._bucket.latest(key)
        if data is None or _etag(data) != etag:
            raise BlobConflict


async def _go_on() -> None:
    """Does not pause."""


def _etag(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _total(versions: Iterable[ObjectVersion]) -> RemovedObjects:
    sizes = [len(version.data or b"") for version in versions]
    return RemovedObjects(objects=len(sizes), bytes=sum(sizes))
