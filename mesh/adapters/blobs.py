"""What the adapter store needs from an object store.

Knows no vendor; `mesh.adapters.s3` is the one implementation.
"""

from collections.abc import Sequence
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


class Blobs(Protocol):
    """Bytes under keys, with conditional writes and nothing else: no write can overwrite what it has not read.

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

    async def delete(self, keys: Sequence[str]) -> None:
        """Removes the keys; one that does not exist is no error."""
        ...

    async def check(self) -> None:
        """Returns if the store answers and its bucket is there."""
        ...
