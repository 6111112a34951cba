"""Blobs on S3, or on anything that speaks it: AWS S3, SeaweedFS, MinIO.

The store must honour `If-None-Match: *` and `If-Match` on PUT, and should honour `If-Match` on DELETE; AWS S3 does, see
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html. Erasing needs the permissions
`s3:ListBucketVersions` and `s3:DeleteObjectVersion`, also in a bucket that keeps no past versions.

The only module that imports boto3.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mesh.adapters.blobs import Blob, BlobConflict, Entry, Erased
from mesh.errors import AdapterCorrupt, AdapterStoreUnavailable
from mesh.settings import AdapterStoreSettings

if TYPE_CHECKING:
    # A package of types only, which is not there outside development.
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        ListObjectsV2OutputTypeDef,
        ListObjectVersionsOutputTypeDef,
        ObjectIdentifierTypeDef,
    )

R = TypeVar("R")

# Calls at the same time. Adapters are a few MB, so more threads would only share the same bandwidth.
_THREADS = 8
# With standard mode's backoff, an outage is told within twice the timeouts plus a second.
_ATTEMPTS = 2
# Keys in one listing or one deletion; S3 allows no more.
_PAGE_KEYS = 1000
# The first removes all, the second sees that; more are needed only while somebody else still writes.
_ERASE_PASSES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Version:
    """One version of an object, or the mark that a deletion left in place of one."""

    key: str
    version_id: str
    is_latest: bool
    is_mark: bool
    size_bytes: int

    @property
    def is_past(self) -> bool:
        """Whether a reader no longer sees it."""
        return self.is_mark or not self.is_latest


class S3Blobs:
    """One bucket. Open it with `async with`; it then owns its connections and threads until it is left.

    Opening contacts nobody, so a server starts while S3 is down, and works once S3 is back. Credentials and region come
    from boto3's own `AWS_*` variables and files.
    """

    def __init__(
        self,
        *,
        bucket: str,
        endpoint_url: str | None = None,
        connect_timeout_seconds: float = 2,
        read_timeout_seconds: float = 10,
        create_bucket: bool = False,
    ) -> None:
        """Takes what is needed to reach the bucket.

        Args:
            bucket: Name of the bucket.
            endpoint_url: Where S3 is, if it is not AWS.
            connect_timeout_seconds: For one try to connect.
            read_timeout_seconds: For one wait on the socket, not for the whole call.
            create_bucket: Create the bucket when it turns out to be missing. Meant for an S3 of one's own; on AWS it
                works in us-east-1 alone, and buckets are better made with their policies.
        """
        self._bucket = bucket
        self._endpoint_url = endpoint_url
        self._create_bucket = create_bucket
        self._config = Config(
            connect_timeout=connect_timeout_seconds,
            read_timeout=read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=_THREADS,
            # Buckets as host names need DNS that a server on loopback does not have.
            s3={"addressing_style": "path"} if endpoint_url else {},
            # Else uploads carry checksum trailers, which not every S3 understands; ours is the sha256 in the manifest.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    @classmethod
    def of(cls, settings: AdapterStoreSettings) -> Self:
        """The bucket that the environment tells of; in an S3 other than AWS's it is created if it is missing."""
        return cls(
            bucket=settings.s3_bucket,
            endpoint_url=settings.s3_endpoint_url,
            connect_timeout_seconds=settings.s3_connect_timeout_seconds,
            read_timeout_seconds=settings.s3_read_timeout_seconds,
            create_bucket=settings.s3_endpoint_url is not None,
        )

    async def __aenter__(self) -> Self:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        # Making a client reads botocore's service description from disk, a good 100 ms.
        self._client = await asyncio.get_running_loop().run_in_executor(self._executor, self._connect)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A cancelled call leaves its thread behind until the socket's timeout: wait beside the loop, not in it.
        await asyncio.to_thread(self._executor.shutdown)
        self._client.close()

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        """See `Blobs.read`."""

        def get(client: "S3Client") -> Blob | None:
            try:
                response = client.get_object(Bucket=self._bucket, Key=key)
            except client.exceptions.NoSuchKey:
                return None
            with response["Body"] as body:
                if response["ContentLength"] > limit_bytes:
                    raise AdapterCorrupt(f"{key} has {response['ContentLength']} bytes, not at most {limit_bytes}")
                return Blob(data=body.read(), etag=response["ETag"])

        return await self._run(get)

    async def create(self, key: str, data: bytes) -> None:
        """See `Blobs.create`."""
        await self._run(lambda client: client.put_object(Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*"))

    async def replace(self, key: str, data: bytes, *, etag: str) -> None:
        """See `Blobs.replace`."""
        await self._run(lambda client: client.put_object(Bucket=self._bucket, Key=key, Body=data, IfMatch=etag))

    async def delete(self, key: str, *, etag: str) -> None:
        """See `Blobs.delete`."""
        await self._run(lambda client: client.delete_object(Bucket=self._bucket, Key=key, IfMatch=etag))

    async def keys(self, prefix: str) -> list[str]:
        """See `Blobs.keys`."""
        return [entry.key async for entry in self.entries(prefix)]

    async def entries(self, prefix: str) -> AsyncIterator[Entry]:
        """See `Blobs.entries`."""
        start = ""
        while True:
            page = await self._run(partial(self._list, prefix=prefix, start=start))
            for entry in _entries_in(page):
                yield entry
            if not page["IsTruncated"]:
                return
            start = page["Contents"][-1]["Key"]

    async def erase(self, prefix: str) -> Erased:
        """See `Blobs.erase`."""

        def remove(client: "S3Client") -> Erased:
            erased = Erased()
            for _ in range(_ERASE_PASSES):
                if not (versions := list(self._find_versions(client, prefix))):
                    return erased
                erased += self._remove_oldest_first(client, versions)
            raise AdapterStoreUnavailable(f"S3 still lists {len(versions)} objects that were deleted")

        return await self._run(remove)

    async def forget(self, prefix: str) -> Erased:
        """See `Blobs.forget`."""

        def remove(client: "S3Client") -> Erased:
            versions = self._find_versions(client, prefix)
            return self._remove_oldest_first(client, [version for version in versions if version.is_past])

        return await self._run(remove)

    async def forget_deleted(self, prefix: str) -> Erased:
        """See `Blobs.forget_deleted`."""

        def remove(client: "S3Client") -> Erased:
            past = [version for version in self._find_versions(client, prefix) if version.is_past]
            deleted = {version.key for version in past if version.is_latest}
            return self._remove_oldest_first(client, [version for version in past if version.key in deleted])

        return await self._run(remove)

    async def check(self) -> None:
        """See `Blobs.check`."""
        await self._run(lambda client: client.list_objects_v2(Bucket=self._bucket, MaxKeys=1))

    def _connect(self) -> "S3Client":
        return Session().client("s3", endpoint_url=self._endpoint_url, config=self._config)

    def _list(self, client: "S3Client", *, prefix: str, start: str) -> "ListObjectsV2OutputTypeDef":
        return client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, StartAfter=start, MaxKeys=_PAGE_KEYS)

    def _find_versions(self, client: "S3Client", prefix: str) -> "Iterator[_Version]":
        # A bucket without versioning tells every object as its only version, with the id "null".
        pages = client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE_KEYS}
        )
        return (version for page in pages for version in _versions_in(page))

    def _remove(self, client: "S3Client", versions: "Sequence[_Version]") -> None:
        for start in range(0, len(versions), _PAGE_KEYS):
            batch = versions[start : start + _PAGE_KEYS]
            names: list[ObjectIdentifierTypeDef] = [{"Key": one.key, "VersionId": one.version_id} for one in batch]
            response = client.delete_objects(Bucket=self._bucket, Delete={"Objects": names, "Quiet": True})
            if failed := response.get("Errors"):
                raise AdapterStoreUnavailable(f"S3 did not delete {len(failed)} objects: {failed[0].get('Code')}")

    def _remove_oldest_first(self, client: "S3Client", versions: "Sequence[_Version]") -> Erased:
        # The latest last, or for a moment a past version would be the latest.
        for latest in (False, True):
            self._remove(client, [version for version in versions if version.is_latest is latest])
        return _sum(versions)

    async def _run(self, call: Callable[["S3Client"], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._call, call)

    def _call(self, call: Callable[["S3Client"], R]) -> R:
        try:
            try:
                return call(self._client)
            except self._client.exceptions.NoSuchBucket:
                if not self._create_bucket:
                    raise
            self._make_bucket()
            return call(self._client)
        except ClientError as error:
            raise _fault(error, bucket=self._bucket) from error
        except BotoCoreError as error:
            # The class alone: some messages hold whole responses.
            raise AdapterStoreUnavailable(f"S3 does not answer: {type(error).__name__}") from error

    def _make_bucket(self) -> None:
        try:
            self._client.create_bucket(Bucket=self._bucket)
        except self._client.exceptions.BucketAlreadyOwnedByYou:
            return  # another process was first


def _fault(error: ClientError, *, bucket: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "unknown")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # 409 is S3's answer to two conditional writes at the same moment; 404, to `If-Match` on a key that is gone.
    if status in (409, 412) or code == "NoSuchKey":
        return BlobConflict(code)
    return AdapterStoreUnavailable(f"S3 refused bucket {bucket}: {code}")


def _entries_in(page: "ListObjectsV2OutputTypeDef") -> Iterator[Entry]:
    # By the answer's own date: the clock here may be another.
    now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    for found in page.get("Contents", []):
        age = now - found["LastModified"]
        yield Entry(key=found["Key"], etag=found["ETag"], size_bytes=found["Size"], age_seconds=age.total_seconds())


def _versions_in(page: "ListObjectVersionsOutputTypeDef") -> Iterator[_Version]:
    for found in page.get("Versions", []):
        yield _Version(
            key=found["Key"],
            version_id=found["VersionId"],
            is_latest=found["IsLatest"],
            is_mark=False,
            size_bytes=found["Size"],
        )
    for mark in page.get("DeleteMarkers", []):
        yield _Version(
            key=mark["Key"], version_id=mark["VersionId"], is_latest=mark["IsLatest"], is_mark=True, size_bytes=0
        )


def _sum(versions: Sequence[_Version]) -> Erased:
    return Erased(objects=len(versions), bytes=sum(version.size_bytes for version in versions))
