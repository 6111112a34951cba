"""The operations that the adapter store needs from an object store.

Knows no vendor; `mesh.adapters.s3` is the one implementation.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class BlobConflict(Exception):
    """The condition of a write did not hold: the key exists, or its blob changed since it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """The bytes at a key, with the tag that a compare-and-swap needs.

    Attributes:
        data: The whole content.
        etag: Opaque; changes whenever the content does.
    """

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobEntry:
    """One blob in a listing.

    Attributes:
        key: The key.
        etag: Tag of the blob.
        size_bytes: Size of the blob.
        age_seconds: Time since the blob was written, by the store's own clock, in steps of one second.
    """

    key: str
    etag: str
    size_bytes: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedObjects:
    """Counts what a call removed.

    Attributes:
        objects: Number of blobs, of their past versions, and of deletion markers.
        bytes: Their total size.
    """

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: "RemovedObjects") -> "RemovedObjects":
        return RemovedObjects(objects=self.objects + other.objects, bytes=self.bytes + other.bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPage:
    """Some of the folders below a prefix.

    Attributes:
        names: Their names, without prefix and slash.
        next_after: The name that the next page starts after; None on the last page.
    """

    names: tuple[str, ...]
    next_after: str | None


class Blobs(Protocol):
    """Bytes under keys. Every write is conditional, so a write overwrites only what its caller has read.

    The store may keep past versions of replaced and deleted blobs (S3's bucket versioning). A deletion then leaves a
    deletion marker. Only `erase`, `forget` and `forget_deleted` touch past versions and markers.

    A conditional write may report a conflict with itself: if the answer to the first try is lost, the retry finds the
    key taken. So callers read the key before they treat a conflict as another writer's.

    Every method raises `AdapterStoreUnavailable` when the store does not answer or refuses.
    """

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        """Returns the blob at the key, or None if there is none.

        Raises:
            AdapterCorrupt: The blob is larger than the limit; nothing beyond the limit is read.
        """
        ...

    async def create(self, key: str, data: bytes) -> None:
        """Writes a new blob.

        Raises:
            BlobConflict: The key exists.
        """
        ...

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        """Replaces the blob that was read with this tag.

        Raises:
            BlobConflict: The blob changed since, or is gone.
        """
        ...

    async def keys(self, prefix: str) -> list[str]:
        """Returns all keys with the prefix, in lexical order."""
        ...

    def entries(self, prefix: str) -> AsyncIterator[BlobEntry]:
        """Lists all blobs with the prefix, in lexical order of their keys; holds one page in memory."""
        ...

    async def folders(self, prefix: str, *, size: int, after: str | None = None) -> FolderPage:
        """Lists the folders below a prefix, in an order of the store's own; reads no more keys than it must.

        Args:
            prefix: Ends with a slash.
            size: Most folders of the page, 1 to 1000.
            after: `next_after` of the page before; None starts with the first.
        """
        ...

    async def delete(self, key: str, *, etag: str) -> None:
        """Removes the blob that was read with this tag.

        Raises:
            BlobConflict: The blob changed since, or is gone.
        """
        ...

    async def erase(self, prefix: str) -> RemovedObjects:
        """Removes all blobs with the prefix and their past versions, oldest first, until a listing is empty.

        Unconditional: only for keys that nobody writes any more. A complete key is a prefix too.
        """
        ...

    async def forget(self, prefix: str) -> RemovedObjects:
        """Removes past versions and deletion markers; leaves the current blobs."""
        ...

    async def forget_deleted(self, prefix: str) -> RemovedObjects:
        """Removes past versions and deletion markers of deleted blobs; leaves those of current blobs."""
        ...

    async def check(self) -> None:
        """Returns if the store answers and the bucket exists."""
        ...
