"""Which version answers once a pointer has moved. Uses the real S3 and Valkey."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis.asyncio import Redis

from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.engine.contract import LoadedAdapter
from mesh.adapters.blobs import Blob
from mesh.adapters.notices import Listener, announce
from mesh.adapters.pointer import ActiveAdapter
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterStoreUnavailable, ModelVersionNotFound
from testing.adapters import publish
from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed, valkey
from tests.mesh.adapters.conftest import recipe, weights

# Longer than any test: a new version is visible only because of a notice.
HOUR_SECONDS = 3600.0
WAIT_SECONDS = 20


class LateBlobs(S3Blobs):
    """The real store, whose answers arrive only when a test allows it."""

    def __init__(self, endpoint: S3Endpoint, *, bucket: str) -> None:
        super().__init__(bucket=bucket, endpoint_url=endpoint.url)
        self.has_read = asyncio.Event()
        self.arrives = asyncio.Event()

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        blob = await super().read(key, limit_bytes=limit_bytes)
        self.has_read.set()
        await self.arrives.wait()
        return blob


def patient_pointers(store: AdapterStore) -> ActivePointers:
    """Pointers that neither expire nor give up on a slow store within a test."""
    return ActivePointers(store, ttl_seconds=HOUR_SECONDS, outage_seconds=HOUR_SECONDS, answer_seconds=HOUR_SECONDS)


class PointerListener:
    """The pointers of a brain that listens for notices, and a way to wait for a notice."""

    def __init__(self, store: AdapterStore) -> None:
        self.pointers = patient_pointers(store)
        self._notice_received = asyncio.Event()
        self._listening_started = asyncio.Event()

    @asynccontextmanager
    async def listening(self, endpoint: RedisEndpoint, *, tenant: str) -> AsyncIterator[None]:
        def on_moved(student_id: str) -> None:
            self.pointers.mark_stale(student_id)
            self._notice_received.set()

        def on_gap() -> None:
            self.pointers.mark_all_stale()
            self._listening_started.set()

        listener = Listener(
            endpoint.url,
            tenant=tenant,
            on_moved=on_moved,
            on_deleted=lambda _student_id: 0,
            on_gap=on_gap,
            on_heard=self.pointers.mark_heard,
        )
        async with listener:
            await self.wait_listening()
            yield

    async def wait_notice(self) -> None:
        await _wait_for(self._notice_received)

    async def wait_listening(self) -> None:
        await _wait_for(self._listening_started)

    async def version_of(self, student: str) -> int | None:
        active = await self.pointers.resolve(student)
        return None if active is None else active.ref.version


async def _wait_for(event: asyncio.Event) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        await event.wait()
    event.clear()


@pytest.fixture
async def blobs(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[S3Blobs]:
    async with S3Blobs(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as opened:
        yield opened


@pytest.fixture
def tenant() -> str:
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def silent_store(blobs: S3Blobs, tenant: str) -> AdapterStore:
    """A store that publishes versions without a notice."""
    return AdapterStore(blobs, tenant=tenant)


async def publish_version(store: AdapterStore, student: str, version: int) -> ActiveAdapter:
    manifest = await publish(store, student, weights(seed=version), recipe=recipe(f"clone_{student}_{version}"))
    assert manifest.ref.version == version
    return ActiveAdapter(ref=manifest.ref, sha256=manifest.sha256)


async def test_a_notice_makes_a_new_version_visible_at_once(
    blobs: S3Blobs, tenant: str, silent_store: AdapterStore, redis_endpoint: RedisEndpoint
) -> None:
    brain = PointerListener(silent_store)
    async with Redis.from_url(redis_endpoint.url) as redis, brain.listening(redis_endpoint, tenant=tenant):
        publisher = AdapterStore(blobs, tenant=tenant, announce=partial(announce, redis))
        assert await brain.version_of("ada") is None

        await publish_version(publisher, "ada", 1)
        await brain.wait_notice()
        assert await brain.version_of("ada") == 1

        await publish_version(silent_store, "ada", 2)
        assert await brain.version_of("ada") == 1, "the cached pointer must not expire within the test"
        await publish_version(publisher, "bob", 1)
        await brain.wait_notice()
        assert await brain.version_of("ada") == 1, "another student's notice must not refresh hers"

        await publisher.activate("ada", 2)
        await brain.wait_notice()
        assert await brain.version_of("ada") == 2


async def test_a_pointer_that_moved_while_redis_was_down_is_read_again_once_it_is_up(
    tmp_path: Path, tenant: str, silent_store: AdapterStore
) -> None:
    brain = PointerListener(silent_store)
    async with valkey(tmp_path) as endpoint, brain.listening(endpoint, tenant=tenant):
        await publish_version(silent_store, "ada", 1)
        assert await brain.version_of("ada") == 1

        await endpoint.part.stop()
        await publish_version(silent_store, "ada", 2)
        assert await brain.version_of("ada") == 1
        await endpoint.part.start()
        await brain.wait_listening()

        assert await brain.version_of("ada") == 2


@pytest.mark.parametrize("all_students", [False, True])
async def test_a_read_during_which_the_pointer_moved_is_not_cached(
    silent_store: AdapterStore, s3_endpoint: S3Endpoint, bucket: str, tenant: str, *, all_students: bool
) -> None:
    first = await publish_version(silent_store, "ada", 1)
    async with LateBlobs(s3_endpoint, bucket=bucket) as late:
        pointers = patient_pointers(AdapterStore(late, tenant=tenant))
        early = asyncio.create_task(pointers.resolve("ada"))
        await _wait_for(late.has_read)
        second = await publish_version(silent_store, "ada", 2)
        if all_students:
            pointers.mark_all_stale()
        else:
            pointers.mark_stale("ada")
        late.arrives.set()

        assert await early == first, "this read began before the pointer moved"
        assert await pointers.resolve("ada") == second


async def test_a_stale_pointer_is_still_the_last_known_while_the_store_is_down(tmp_path: Path, bucket: str) -> None:
    async with (
        seaweed(tmp_path) as endpoint,
        S3Blobs(bucket=bucket, endpoint_url=endpoint.url, create_bucket=True) as blobs,
    ):
        store = AdapterStore(blobs)
        pointers = patient_pointers(store)
        first = await publish_version(store, "ada", 1)
        assert await pointers.resolve("ada") == first
        await endpoint.part.stop()

        pointers.mark_stale("ada")
        pointers.mark_all_stale()
        with pytest.raises(AdapterStoreUnavailable):
            await pointers.resolve("ada")
        assert pointers.last_known("ada") == first


async def test_what_the_store_said_last_counts_for_a_bounded_time_or_as_long_as_notices_are_heard(
    silent_store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    # The module's clock alone: asyncio needs its own.
    monkeypatch.setattr("brain_server.adapters.pointer_cache.time", SimpleNamespace(monotonic=lambda: now))
    first = await publish_version(silent_store, "ada", 1)
    pointers = ActivePointers(silent_store, ttl_seconds=2, outage_seconds=60, answer_seconds=HOUR_SECONDS)
    assert await pointers.resolve("ada") == first
    identity = await pointers.identify(first.ref)

    def last_known() -> tuple[ActiveAdapter | None, LoadedAdapter | None]:
        return pointers.last_known("ada"), pointers.last_known_version(first.ref)

    now += 59
    assert last_known() == (first, identity)
    now += 1
    assert last_known() == (None, None)
    pointers.mark_heard()
    assert last_known() == (first, identity), "a deletion would have been heard"
    now += 59
    assert last_known() == (first, identity)
    pointers.mark_all_stale()
    pointers.mark_heard()
    assert last_known() == (None, None), "a deletion may have been missed before it listened again"


async def test_invented_students_push_out_one_another_and_no_student_with_a_model(
    silent_store: AdapterStore, s3_endpoint: S3Endpoint, bucket: str, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brain_server.adapters.pointer_cache.MAX_ANSWERS", 2)
    active = {student: await publish_version(silent_store, student, 1) for student in ("ada", "bob", "eve")}
    async with LateBlobs(s3_endpoint, bucket=bucket) as counted:
        counted.arrives.set()
        pointers = patient_pointers(AdapterStore(counted, tenant=tenant))

        async def is_read(student: str) -> bool:
            counted.has_read.clear()
            assert await pointers.resolve(student) == active.get(student)
            return counted.has_read.is_set()

        for student in ("ada", "bob", "invented-1", "invented-2", "invented-3"):
            assert await is_read(student)
        assert [pointers.last_known(student) for student in ("ada", "bob")] == [active["ada"], active["bob"]]
        assert [await is_read(student) for student in ("ada", "bob", "invented-3", "invented-1")] == [
            False, False, False, True
        ]  # fmt: skip

        assert await is_read("eve")
        assert pointers.last_known("ada") is None, "the least recently read of two"
        active["invented-1"] = await publish_version(silent_store, "invented-1", 1)
        pointers.mark_stale("invented-1")
        assert await is_read("invented-1")
        assert [pointers.last_known(student) for student in ("bob", "invented-1")] == [None, active["invented-1"]]


async def test_a_read_during_which_the_student_was_deleted_is_not_cached(
    silent_store: AdapterStore, s3_endpoint: S3Endpoint, bucket: str, tenant: str
) -> None:
    first = await publish_version(silent_store, "ada", 1)
    async with LateBlobs(s3_endpoint, bucket=bucket) as late:
        pointers = patient_pointers(AdapterStore(late, tenant=tenant))
        pointer_read = asyncio.create_task(pointers.resolve("ada"))
        await _wait_for(late.has_read)
        version_read = asyncio.create_task(pointers.identify(first.ref))
        await _wait_for(late.has_read)
        await silent_store.delete_student("ada")
        pointers.forget("ada")
        late.arrives.set()
        await asyncio.gather(pointer_read, version_read)

        assert await pointers.resolve("ada") is None
        with pytest.raises(ModelVersionNotFound):
            await pointers.identify(first.ref)
