"""What the adapter store needs from an object store.

Knows no vendor; `mesh.adapters.s3` is the one implementation.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


class BlobConflict(Exception):
    """The condition of a write did not hold: the key exists, or its blob is no longer the one that was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """The bytes at a key, and the tag that a compare-and-swap needs.

    Attributes:
        data: The whole content.
        etag: Opaque; changes whenever the content does.
    """

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A key in a listing.

    Attributes:
        key: The key.
        etag: The tag of its blob.
        size_bytes: Of its blob.
        age_seconds: Since the blob was written, by the store's own clock, whose step is a second.
    """

    key: str
    etag: str
    size_bytes: int
    age_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What an erasure removed.

    Attributes:
        objects: Blobs, each of their past versions, and the marks that a deletion leaves where past versions are kept.
        bytes: Their size.
    """

    objects: int = 0
    bytes: int = 0

    def __add__(self, other: "Erased") -> "Erased":
        return Erased(objects=self.objects + other.objects, bytes=self.bytes + other.bytes)


class Blobs(Protocol):
    """Bytes under keys, with conditional writes and nothing else: no write can overwrite what it has not read.

    The store may keep past versions of what was replaced or deleted (S3's bucket versioning); only `erase`,
    `forget` and `forget_deleted` see them.

    A conditional write may report a conflict with itself: when the answer to the first try is lost, the retry finds
    the key taken. Callers read back before they believe a conflict.

    Every method raises `AdapterStoreUnavailable` when the store does not answer or refuses.
    """

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        """The blob at the key, or None if there is none.

        Raises:
            AdapterCorrupt: It is larger than the limit; nothing beyond the limit is read.
        """
        ...

    async def create(self, key: str, data: bytes) -> None:
        """Writes a new blob.

        Raises:
            BlobConflict: The key exists.
        """
        ...

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        """Writes over the blob that was read with this tag.

        Raises:
            BlobConflict: The blob changed since, or is gone.
        """
        ...

    async def keys(self, prefix: str) -> list[str]:
        """All keys with the prefix, in lexical order."""
        ...

    def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """The same with what a listing tells of each blob, and without holding more than a page."""
        ...

    async def delete(self, key: str, *, etag: str) -> None:
        """Removes the blob that was read with this tag.

        Raises:
            BlobConflict: The blob changed since, or is gone.
        """
        ...

    async def erase(self, prefix: str) -> Erased:
        """Removes all blobs whose keys have the prefix, the oldest versions first, until a listing finds none.

        No conditions: for what nobody may write any more. A whole key is a prefix too.
        """
        ...

    async def forget(self, prefix: str) -> Erased:
        """Removes past versions and the marks of deletions, and none of the blobs that are there."""
        ...

    async def forget_deleted(self, prefix: str) -> Erased:
        """Removes the past versions of blobs that were deleted, and the marks of their deletions.

        The past of blobs that are there stays.
        """
        ...

    async def check(self) -> None:
        """Returns if the store answers and its bucket is there."""
        ...
