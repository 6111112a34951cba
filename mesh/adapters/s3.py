"""Blobs on S3 or a compatible store: AWS S3, SeaweedFS, MinIO.

The store must honour `If-None-Match: *` and `If-Match` on PUT, and should honour `If-Match` on DELETE; AWS S3 does, see
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html. Erasing needs the permissions
`s3:ListBucketVersions` and `s3:DeleteObjectVersion`, even in a bucket without versioning.

Only this module and `mesh.sealing.kms` import boto3.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from mesh.adapters.blobs import Blob, BlobConflict, BlobEntry, FolderPage, RemovedObjects
from mesh.adapters.s3_versions import ObjectVersion, count_removed, past_versions, versions_in
from mesh.errors import AdapterCorrupt, AdapterStoreUnavailable
from mesh.settings import AdapterStoreSettings

if TYPE_CHECKING:
    # A package of types only, which is not there outside development.
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import (
        ListObjectsV2OutputTypeDef,
        ObjectIdentifierTypeDef,
    )

R = TypeVar("R")

# Parallel calls. Adapters have a few MB, so more threads would only share the same bandwidth.
_THREADS = 8
# With standard mode's backoff, an outage is reported within twice the timeouts plus one second.
_ATTEMPTS = 2
# Keys per listing and per deletion; S3 allows no more.
_PAGE_KEYS = 1000
# The first pass removes all versions and the second finds none; more are needed only while others still write.
_ERASE_PASSES = 8


class S3Blobs:
    """One bucket. Open it with `async with`; it owns its connections and threads until the block is left.

    Opening sends no request, so a server starts while S3 is down and works once S3 is back. Credentials and region come
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
        """Configures access to the bucket.

        Args:
            bucket: Name of the bucket.
            endpoint_url: URL of the store; None for AWS.
            connect_timeout_seconds: Limit of one attempt to connect.
            read_timeout_seconds: Limit of one wait on the socket, not of the whole call.
            create_bucket: Create the bucket if it is missing. Meant for a self-hosted store; on AWS it works in
                us-east-1 only, and a bucket is better created together with its policies.
        """
        self._bucket = bucket
        self._endpoint_url = endpoint_url
        self._create_bucket = create_bucket
        self._config = Config(
            connect_timeout=connect_timeout_seconds,
            read_timeout=read_timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=_THREADS,
            # Buckets as host names need DNS, which a server on loopback lacks.
            s3={"addressing_style": "path"} if endpoint_url else {},
            # Otherwise uploads carry checksum trailers, which not every store accepts. Our checksum is the manifest's.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )

    @classmethod
    def of(cls, settings: AdapterStoreSettings) -> Self:
        """Configures the bucket of the settings; creates it if it is missing, except on AWS."""
        return cls(
            bucket=settings.s3_bucket,
            endpoint_url=settings.s3_endpoint_url,
            connect_timeout_seconds=settings.s3_connect_timeout_seconds,
            read_timeout_seconds=settings.s3_read_timeout_seconds,
            create_bucket=settings.s3_endpoint_url is not None,
        )

    async def __aenter__(self) -> Self:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="s3")
        # Creating a client reads botocore's service description from disk, which takes more than 100 ms.
        self._client = await asyncio.get_running_loop().run_in_executor(self._executor, self._connect)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The thread of a cancelled call runs until the socket's timeout, so wait outside the event loop.
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
                    raise AdapterCorrupt(
                        f"{key} has {response['ContentLength']} bytes, above the limit of {limit_bytes}"
                    )
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

    async def entries(self, prefix: str) -> AsyncIterator[BlobEntry]:
        """See `Blobs.entries`."""
        start = ""
        while True:
            page = await self._run(partial(self._list, prefix=prefix, start=start))
            for entry in _entries_in(page):
                yield entry
            if not page["IsTruncated"]:
                return
            start = page["Contents"][-1]["Key"]

    async def folders(self, prefix: str, *, size: int, after: str | None = None) -> FolderPage:
        """See `Blobs.folders`."""

        def list_folders(client: "S3Client") -> FolderPage:
            list_page = partial(client.list_objects_v2, Bucket=self._bucket, Prefix=prefix, Delimiter="/", MaxKeys=size)
            # A tilde comes after every character that our keys have, so the folder itself is not listed again.
            page = list_page() if after is None else list_page(StartAfter=f"{prefix}{after}/~")
            # A page may hold nothing but objects beside the folders, of someone else's.
            while page["IsTruncated"] and not page.get("CommonPrefixes"):
                page = list_page(ContinuationToken=page["NextContinuationToken"])
            folders = [folder["Prefix"] for folder in page.get("CommonPrefixes", [])]
            names = tuple(folder.removeprefix(prefix).removesuffix("/") for folder in folders)
            return FolderPage(names=names, next_after=names[-1] if page["IsTruncated"] else None)

        return await self._run(list_folders)

    async def erase(self, prefix: str) -> RemovedObjects:
        """See `Blobs.erase`."""

        def remove(client: "S3Client") -> RemovedObjects:
            erased = RemovedObjects()
            for _ in range(_ERASE_PASSES):
                if not (versions := list(self._find_versions(client, prefix))):
                    return erased
                erased += self._remove_oldest_first(client, versions)
            raise AdapterStoreUnavailable(f"S3 still lists {len(versions)} objects after {_ERASE_PASSES} deletions")

        return await self._run(remove)

    async def forget(self, prefix: str) -> RemovedObjects:
        """See `Blobs.forget`."""

        def remove(client: "S3Client") -> RemovedObjects:
            return self._remove_oldest_first(client, past_versions(self._find_versions(client, prefix)))

        return await self._run(remove)

    async def forget_deleted(self, prefix: str) -> RemovedObjects:
        """See `Blobs.forget_deleted`."""

        def remove(client: "S3Client") -> RemovedObjects:
            deleted_and_replaced = past_versions(self._find_versions(client, prefix))
            deleted_keys = {version.key for version in deleted_and_replaced if version.is_latest}
            return self._remove_oldest_first(
                client, [version for version in deleted_and_replaced if version.key in deleted_keys]
            )

        return await self._run(remove)

    async def check(self) -> None:
        """See `Blobs.check`."""
        await self._run(lambda client: client.list_objects_v2(Bucket=self._bucket, MaxKeys=1))

    def _connect(self) -> "S3Client":
        return Session().client("s3", endpoint_url=self._endpoint_url, config=self._config)

    def _list(self, client: "S3Client", *, prefix: str, start: str) -> "ListObjectsV2OutputTypeDef":
        return client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, StartAfter=start, MaxKeys=_PAGE_KEYS)

    def _find_versions(self, client: "S3Client", prefix: str) -> "Iterator[ObjectVersion]":
        # A bucket without versioning lists each object as its only version, with the id "null".
        pages = client.get_paginator("list_object_versions").paginate(
            Bucket=self._bucket, Prefix=prefix, PaginationConfig={"PageSize": _PAGE_KEYS}
        )
        return (version for page in pages for version in versions_in(page))

    def _remove(self, client: "S3Client", versions: "Sequence[ObjectVersion]") -> None:
        for start in range(0, len(versions), _PAGE_KEYS):
            batch = versions[start : start + _PAGE_KEYS]
            names: list[ObjectIdentifierTypeDef] = [
                {"Key": version.key, "VersionId": version.version_id} for version in batch
            ]
            response = client.delete_objects(Bucket=self._bucket, Delete={"Objects": names, "Quiet": True})
            if errors := response.get("Errors"):
                raise AdapterStoreUnavailable(f"S3 did not delete {len(errors)} objects: {errors[0].get('Code')}")

    def _remove_oldest_first(self, client: "S3Client", versions: "Sequence[ObjectVersion]") -> RemovedObjects:
        # The latest version last, or a past version would be the latest for a moment.
        for latest in (False, True):
            self._remove(client, [version for version in versions if version.is_latest is latest])
        return count_removed(versions)

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
            # Only the class: some messages contain whole responses.
            raise AdapterStoreUnavailable(f"S3 does not answer: {type(error).__name__}") from error

    def _make_bucket(self) -> None:
        try:
            self._client.create_bucket(Bucket=self._bucket)
        except self._client.exceptions.BucketAlreadyOwnedByYou:
            return  # another process created it first


def _fault(error: ClientError, *, bucket: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "unknown")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    # S3 answers 409 to two simultaneous conditional writes, and 404 to `If-Match` on a key that is gone.
    if status in (409, 412) or code == "NoSuchKey":
        return BlobConflict(code)
    return AdapterStoreUnavailable(f"S3 refused bucket {bucket}: {code}")


def _entries_in(page: "ListObjectsV2OutputTypeDef") -> Iterator[BlobEntry]:
    # The response's own date, because the local clock may differ.
    now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
    for listed_object in page.get("Contents", []):
        age = now - listed_object["LastModified"]
        yield BlobEntry(
            key=listed_object["Key"],
            etag=listed_object["ETag"],
            size_bytes=listed_object["Size"],
            age_seconds=age.total_seconds(),
        )
