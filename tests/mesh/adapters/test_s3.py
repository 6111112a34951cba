"""The blob contract on the real S3, and what an outage of it looks like."""

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from boto3.session import Session

from mesh.adapters import s3
from mesh.adapters.blobs import BlobConflict, RemovedObjects
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterCorrupt, AdapterStoreUnavailable
from testing.adapters import publish
from testing.parts.part import free_ports
from testing.parts.stores import S3Endpoint, seaweed
from tests.mesh.adapters.conftest import recipe, weights

# SeaweedFS hands the writers of one key a lock for which they poll once a second, and refuses who has waited too long,
# where AWS answers at once: many more writers than clones of one student can have would test its patience, not us.
WRITERS = 4


async def test_of_many_who_create_a_key_one_wins(blobs: S3Blobs, student: str) -> None:
    results = await asyncio.gather(
        *(blobs.create(student, bytes([number])) for number in range(WRITERS)), return_exceptions=True
    )

    winners = [number for number, result in enumerate(results) if result is None]
    assert len(winners) == 1
    assert {type(result) for result in results} == {type(None), BlobConflict}
    blob = await blobs.read(student, limit_bytes=1)
    assert blob is not None
    assert blob.data == bytes(winners)


async def test_of_many_who_replace_what_they_read_one_wins(blobs: S3Blobs, student: str) -> None:
    await blobs.create(student, b"before")
    blob = await blobs.read(student, limit_bytes=10)
    assert blob is not None

    results = await asyncio.gather(
        *(blobs.replace(student, bytes([number]), etag=blob.etag) for number in range(WRITERS)), return_exceptions=True
    )

    assert results.count(None) == 1
    assert {type(result) for result in results} == {type(None), BlobConflict}


async def test_replacing_what_is_gone_is_a_conflict(blobs: S3Blobs, student: str) -> None:
    await blobs.create(student, b"before")
    blob = await blobs.read(student, limit_bytes=10)
    assert blob is not None
    await blobs.erase(student)

    with pytest.raises(BlobConflict):
        await blobs.replace(student, b"after", etag=blob.etag)


async def test_a_missing_key_reads_as_none_and_erases_without_error(blobs: S3Blobs, student: str) -> None:
    assert await blobs.read(student, limit_bytes=1) is None
    assert await blobs.erase(student) == RemovedObjects()
    assert await blobs.forget(student) == RemovedObjects()


@pytest.mark.parametrize("size", [1, 2, 1000])
async def test_folders_are_listed_page_by_page_also_beside_other_objects(
    blobs: S3Blobs, student: str, size: int
) -> None:
    keys = [*(f"{name}/{key}" for name in ("s", "s-1", "s.1", "s1") for key in ("a", "v1/z")), "A", "s-2", "t"]
    for key in keys:
        await blobs.create(f"{student}/{key}", b"")
    pages = [await blobs.folders(f"{student}/", size=size)]
    while pages[-1].next_after is not None:
        pages.append(await blobs.folders(f"{student}/", size=size, after=pages[-1].next_after))
    assert max(len(page.names) for page in pages) <= size
    assert sorted(name for page in pages for name in page.names) == ["s", "s-1", "s.1", "s1"]


async def test_only_what_was_read_is_deleted(blobs: S3Blobs, student: str) -> None:
    await blobs.create(student, b"before")
    blob = await blobs.read(student, limit_bytes=10)
    assert blob is not None
    await blobs.replace(student, b"after", etag=blob.etag)
    with pytest.raises(BlobConflict):
        await blobs.delete(student, etag=blob.etag)

    now = await blobs.read(student, limit_bytes=10)
    assert now is not None
    assert now.data == b"after"
    await blobs.delete(student, etag=now.etag)
    assert await blobs.read(student, limit_bytes=10) is None
    with pytest.raises(BlobConflict):
        await blobs.delete(student, etag=now.etag)


async def test_a_listing_tells_sizes_and_ages(blobs: S3Blobs, student: str) -> None:
    await blobs.create(student, b"12345")

    (entry,) = [entry async for entry in blobs.entries(student)]

    assert (entry.key, entry.size_bytes) == (student, 5)
    assert 0 <= entry.age_seconds < 60


async def test_a_blob_above_the_limit_is_refused(blobs: S3Blobs, student: str) -> None:
    await blobs.create(student, b"12345")
    with pytest.raises(AdapterCorrupt, match="5 bytes"):
        await blobs.read(student, limit_bytes=4)


async def test_keys_are_listed_and_deleted_beyond_one_page(
    blobs: S3Blobs, student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_PAGE_KEYS", 3)
    keys = [f"{student}/{number}" for number in range(8)]
    await asyncio.gather(*(blobs.create(key, b"x") for key in keys))

    assert await blobs.keys(f"{student}/") == keys
    assert await blobs.erase(f"{student}/") == RemovedObjects(objects=8, bytes=8)
    assert await blobs.keys(f"{student}/") == []


async def test_what_s3_refuses_to_delete_is_told(s3_endpoint: S3Endpoint, bucket: str) -> None:
    client = Session().client("s3", endpoint_url=s3_endpoint.url)
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(hours=1)
    client.put_object(
        Bucket=bucket, Key="ada/locked", Body=b"x", ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=until
    )
    client.close()
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url) as blobs:
        await blobs.create("ada/free", b"x")

        with pytest.raises(AdapterStoreUnavailable, match="1 objects: AccessDenied"):
            await blobs.erase("ada/")

        assert await blobs.keys("ada/") == ["ada/locked"]


async def test_erasing_takes_the_past_versions_and_forgetting_nothing_else(versioned: S3Blobs) -> None:
    for key in ("kept", "gone", "other/kept"):
        await versioned.create(f"ada/{key}", b"1")
        blob = await versioned.read(f"ada/{key}", limit_bytes=1)
        assert blob is not None
        await versioned.replace(f"ada/{key}", b"22", etag=blob.etag)
    doomed_blob = await versioned.read("ada/gone", limit_bytes=2)
    assert doomed_blob is not None
    await versioned.delete("ada/gone", etag=doomed_blob.etag)

    # The past of `kept`; of `gone`, two versions and the mark that it was deleted.
    assert await versioned.forget("ada/kept") == RemovedObjects(objects=1, bytes=1)
    assert await versioned.forget("ada/gone") == RemovedObjects(objects=3, bytes=3)
    current_blob = await versioned.read("ada/kept", limit_bytes=2)
    assert current_blob is not None
    assert current_blob.data == b"22"

    assert await versioned.erase("ada/other") == RemovedObjects(objects=2, bytes=3)
    assert await versioned.keys("ada/") == ["ada/kept"]
    assert await versioned.erase("ada/") == RemovedObjects(objects=1, bytes=2)
    assert await versioned.erase("ada/") == RemovedObjects()


async def test_forgetting_past_versions_loses_no_blob_that_is_being_created(versioned: S3Blobs) -> None:
    async def create(worker: int) -> None:
        for number in range(100):
            await versioned.create(f"ada/{worker}-{number}", b"x" * 1000)

    async def forget(creations: asyncio.Future[list[None]]) -> None:
        while not creations.done():
            await versioned.forget("ada/")

    creations = asyncio.gather(*map(create, range(4)))
    await asyncio.gather(creations, forget(creations), forget(creations))

    assert len(await versioned.keys("ada/")) == 400


async def test_only_the_past_of_deleted_blobs_is_forgotten_with_them(versioned: S3Blobs) -> None:
    for key in ("kept", "gone"):
        await versioned.create(f"ada/{key}", b"1")
        blob = await versioned.read(f"ada/{key}", limit_bytes=1)
        assert blob is not None
        await versioned.replace(f"ada/{key}", b"22", etag=blob.etag)
    doomed_blob = await versioned.read("ada/gone", limit_bytes=2)
    assert doomed_blob is not None
    await versioned.delete("ada/gone", etag=doomed_blob.etag)

    # Two versions and the mark of the deletion.
    assert await versioned.forget_deleted("ada/") == RemovedObjects(objects=3, bytes=3)

    assert await versioned.forget_deleted("ada/") == RemovedObjects()
    assert await versioned.erase("ada/kept") == RemovedObjects(objects=2, bytes=3)


async def test_a_missing_bucket_is_created_on_first_use_only_if_told_to(s3_endpoint: S3Endpoint, bucket: str) -> None:
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url) as blobs:
        with pytest.raises(AdapterStoreUnavailable, match="NoSuchBucket"):
            await blobs.check()
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        await asyncio.gather(*(blobs.check() for _ in range(4)))
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url) as blobs:
        await blobs.check()


async def test_wrong_credentials_are_told_without_the_secret(
    s3_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    async with S3Blobs(bucket="test-adapters", endpoint_url=s3_endpoint.url) as blobs:
        with pytest.raises(AdapterStoreUnavailable, match="SignatureDoesNotMatch") as refusal:
            await blobs.check()
    assert "wrong-secret" not in str(refusal.value)


async def test_a_store_that_answers_nothing_is_told_within_the_timeouts(s3_endpoint: S3Endpoint) -> None:
    # The kernel takes the connection, and nobody ever reads from it.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with S3Blobs(bucket="any", endpoint_url=url, read_timeout_seconds=0.2) as blobs, asyncio.timeout(5):
            with pytest.raises(AdapterStoreUnavailable, match="ReadTimeoutError"):
                await blobs.check()


async def test_an_outage_is_unavailable_and_passes_without_a_restart(
    s3_endpoint: S3Endpoint, tmp_path: Path, student: str
) -> None:
    # A SeaweedFS of its own: other tests share the session's. `s3_endpoint` set the credentials, equal for both.
    async with (
        seaweed(tmp_path) as endpoint,
        S3Blobs(bucket="outage", endpoint_url=endpoint.url, create_bucket=True) as blobs,
    ):
        store = AdapterStore(blobs)
        manifest = await publish(store, student, weights(), recipe=recipe())

        await endpoint.part.kill()
        with pytest.raises(AdapterStoreUnavailable):
            await store.check()
        with pytest.raises(AdapterStoreUnavailable):
            await store.fetch(manifest.ref)
        with pytest.raises(AdapterStoreUnavailable):
            await publish(store, student, weights(), recipe=recipe("clone_2"))

        await endpoint.part.start()
        await store.check()
        assert (await store.fetch(manifest.ref)).weights == weights()


async def test_opening_while_s3_is_down_contacts_nobody(s3_endpoint: S3Endpoint) -> None:
    (port,) = free_ports(1)
    async with S3Blobs(bucket="any", endpoint_url=f"http://127.0.0.1:{port}") as blobs:
        with pytest.raises(AdapterStoreUnavailable, match="EndpointConnectionError"):
            await blobs.check()
