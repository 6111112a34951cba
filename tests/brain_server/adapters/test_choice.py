"""Which adapter answers, and which stay in memory. Uses the real store, no model."""

import asyncio
import uuid
from contextlib import AsyncExitStack
from typing import ClassVar

import pytest
from structlog.testing import capture_logs

from brain_server.engine.contract import AdapterPolicy, Fallback
from mesh.adapters.blobs import Blob
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    ModelVersionNotFound,
    StudentModelNotFound,
)
from testing.models.random_adapters import publish_unchecked, recipe, with_nan
from testing.parts.stores import S3Endpoint
from tests.brain_server.adapters.choosing import (
    DIGEST,
    HOUR_SECONDS,
    WEIGHTS,
    adapters_of,
    choose,
    publish_random,
    request_of,
)


class CountingS3(S3Blobs):
    """Notes which keys are read."""

    keys_read: ClassVar[list[str]] = []

    async def read(self, key: str, *, limit_bytes: int) -> Blob | None:
        self.keys_read.append(key)
        return await super().read(key, limit_bytes=limit_bytes)


async def test_the_active_adapter_answers(store: AdapterStore, student: str) -> None:
    manifest = await publish_random(store, student)
    choice = await choose(adapters_of(store), request_of(student))
    assert choice.fallback is None
    assert choice.adapter is not None
    assert (choice.adapter.identity.ref, choice.adapter.identity.sha256) == (manifest.ref, manifest.sha256)


async def test_the_base_model_never_answers_without_saying_why(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store)
    assert (await choose(adapters, request_of(None))).fallback is Fallback.NO_STUDENT
    assert (await choose(adapters, request_of(student))).fallback is Fallback.NO_STUDENT_MODEL
    await publish_random(store, student)
    base_only = request_of(student, policy=AdapterPolicy.BASE_ONLY)
    assert (await choose(adapters, base_only)).fallback is Fallback.BASE_ONLY


async def test_a_required_adapter_that_is_not_there_is_an_error(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store)
    with pytest.raises(StudentModelNotFound):
        await choose(adapters, request_of(student, policy=AdapterPolicy.REQUIRE))
    await publish_random(store, student)
    with pytest.raises(ModelVersionNotFound):
        await choose(adapters, request_of(student, version=7))


async def test_a_requested_version_answers_although_another_is_active(store: AdapterStore, student: str) -> None:
    first = await publish_random(store, student, seed=1)
    await publish_random(store, student, seed=2)
    choice = await choose(adapters_of(store), request_of(student, version=1))
    assert choice.adapter is not None
    assert choice.adapter.identity.sha256 == first.sha256


async def test_a_new_version_answers_once_the_pointer_is_read_again(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await publish_random(store, student, seed=1)
    await choose(adapters, request_of(student))
    second = await publish_random(store, student, seed=2)
    cached = await choose(adapters, request_of(student))
    assert cached.adapter is not None
    assert cached.adapter.identity.ref.version == 1
    await adapters.pointers.resolve(student, refresh=True)
    refreshed = await choose(adapters, request_of(student))
    assert refreshed.adapter is not None
    assert refreshed.adapter.identity.sha256 == second.sha256


async def test_a_student_deleted_and_cloned_again_gets_the_new_bytes_under_the_old_number(
    store: AdapterStore, student: str
) -> None:
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await publish_random(store, student, seed=1)
    await choose(adapters, request_of(student))
    await store.delete_student(student)
    republished = await publish_random(store, student, seed=2)
    assert republished.ref.version == 1
    adapters.host.evict(student)
    choice = await choose(adapters, request_of(student))
    assert choice.adapter is not None
    assert choice.adapter.identity.sha256 == republished.sha256


async def test_the_main_brain_answers_for_a_model_of_another_one_and_says_so(store: AdapterStore, student: str) -> None:
    await publish_random(store, student, digest="e" * 64)
    choice = await choose(adapters_of(store), request_of(student))
    assert (choice.adapter, choice.fallback) == (None, Fallback.OUTDATED)


async def test_an_outdated_model_that_is_required_is_an_error_that_says_what_to_do(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student, digest="e" * 64)
    adapters = adapters_of(store)
    for request in (request_of(student, policy=AdapterPolicy.REQUIRE), request_of(student, version=1)):
        with pytest.raises(AdapterIncompatible, match="clone the student again") as caught:
            await choose(adapters, request)
        assert caught.value.facts == {"student_id": student, "version": 1}
    with pytest.raises(AdapterIncompatible):
        async with adapters.lease(student):
            pass


async def test_an_outdated_model_is_read_once_and_logged_once(
    s3_endpoint: S3Endpoint, bucket: str, student: str
) -> None:
    async with CountingS3(bucket=bucket, endpoint_url=s3_endpoint.url, create_bucket=True) as blobs:
        store = AdapterStore(blobs)
        await publish_random(store, student, digest="e" * 64)
        adapters = adapters_of(store, ttl=HOUR_SECONDS)
        blobs.keys_read.clear()
        with capture_logs() as logs:
            choices = await asyncio.gather(*(choose(adapters, request_of(student)) for _ in range(5)))
            choices.append(await choose(adapters, request_of(student)))
            with pytest.raises(AdapterIncompatible):
                await choose(adapters, request_of(student, policy=AdapterPolicy.REQUIRE))
        # Its weights never, and the pointer by each that came while it was not known.
        assert [key for key in blobs.keys_read if "active.json" not in key] == [store.ref(student, 1).manifest_key]
    assert {choice.fallback for choice in choices} == {Fallback.OUTDATED}
    assert [event["event"] for event in logs] == ["student_model_outdated"]


async def test_a_new_clone_ends_being_outdated(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store)
    await publish_random(store, student, digest="e" * 64)
    assert (await choose(adapters, request_of(student))).fallback is Fallback.OUTDATED
    manifest = await publish_random(store, student, seed=2)
    choice = await choose(adapters, request_of(student))
    assert choice.adapter is not None
    assert choice.adapter.identity.ref == manifest.ref
    await store.activate(student, 1)
    assert (await choose(adapters, request_of(student))).fallback is Fallback.OUTDATED
    adapters.evict(student)
    assert (await choose(adapters, request_of(student))).fallback is Fallback.OUTDATED


@pytest.mark.parametrize("policy", [AdapterPolicy.PREFER, AdapterPolicy.REQUIRE])
async def test_weights_that_are_not_finite_are_an_error_under_every_policy(
    store: AdapterStore, blobs: S3Blobs, student: str, policy: AdapterPolicy
) -> None:
    unchecked_recipe = recipe(base_digest=DIGEST, rank=1)
    await publish_unchecked(blobs, student, with_nan(WEIGHTS), recipe=unchecked_recipe)
    with pytest.raises(AdapterCorrupt):
        await choose(adapters_of(store), request_of(student, policy=policy))


async def test_many_callers_share_one_fetch(store: AdapterStore, student: str) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await adapters.pointers.resolve(student)
    choices = await asyncio.gather(*(choose(adapters, request_of(student)) for _ in range(20)))
    assert len({id(choice.adapter) for choice in choices}) == 1


async def test_cancelling_one_caller_does_not_cancel_the_fetch_for_the_others(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await adapters.pointers.resolve(student)
    cancelled_caller, other_caller = (asyncio.create_task(choose(adapters, request_of(student))) for _ in range(2))
    await asyncio.sleep(0)  # Both wait for the fetch now.
    cancelled_caller.cancel()
    assert (await other_caller).adapter is not None
    with pytest.raises(asyncio.CancelledError):
        await cancelled_caller


async def test_the_least_recently_used_adapter_is_evicted_first_and_one_in_use_never(store: AdapterStore) -> None:
    students = [f"student-{uuid.uuid4().hex[:12]}" for _ in range(4)]
    for student in students:
        await publish_random(store, student)
    adapters = adapters_of(store, host_bytes=2 * len(WEIGHTS))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(adapters.lease(students[0]))
        for student in students[1:]:
            await choose(adapters, request_of(student))
        students_in_memory = [residency.adapter.ref.student_id for residency in adapters.host.residencies()]
        assert students_in_memory == [students[3], students[0]]
        assert [residency.leases for residency in adapters.host.residencies()] == [0, 1]
    assert sum(residency.bytes for residency in adapters.host.residencies()) <= 2 * len(WEIGHTS)
    assert adapters.host.counts.evictions == 2


async def test_an_evicted_adapter_serves_its_holder_and_is_fetched_again_for_others(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store)
    async with adapters.lease(student) as adapter:
        (evicted_identity,) = adapters.host.evict(student)
        assert evicted_identity == adapter.identity
        assert adapter.content
        async with adapters.lease(student) as refetched:
            assert refetched is not adapter
    assert len(adapters.host.residencies()) == 1


async def test_a_version_that_a_request_names_is_asked_for_again_once_what_was_read_has_expired(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student)
    patient, strict = adapters_of(store, ttl=HOUR_SECONDS), adapters_of(store)
    for adapters in (patient, strict):
        assert (await choose(adapters, request_of(student, version=1))).adapter is not None
    await store.delete_student(student)

    assert (await choose(patient, request_of(student, version=1))).adapter is not None, "within the time to live"
    with pytest.raises(ModelVersionNotFound):
        await choose(strict, request_of(student, version=1))
    assert strict.host.residencies() == []
    patient.pointers.forget(student)
    with pytest.raises(ModelVersionNotFound):
        await choose(patient, request_of(student, version=1))
    assert patient.host.residencies() == []


async def test_a_named_version_that_was_published_again_answers_with_the_new_bytes(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student, seed=1)
    adapters = adapters_of(store)
    await choose(adapters, request_of(student, version=1))
    await store.delete_student(student)
    republished = await publish_random(store, student, seed=2)
    choice = await choose(adapters, request_of(student, version=1))
    assert choice.adapter is not None
    assert choice.adapter.identity.sha256 == republished.sha256


async def test_a_named_version_that_was_published_again_is_found_also_before_what_was_read_expires(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student, seed=1)
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await choose(adapters, request_of(student, version=1))
    await store.delete_student(student)
    republished = await publish_random(store, student, seed=2)
    adapters.host.evict(student)
    choice = await choose(adapters, request_of(student, version=1))
    assert choice.adapter is not None
    assert choice.adapter.identity.sha256 == republished.sha256


async def test_a_deleted_student_leaves_memory_when_the_pointer_is_read_again(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store)
    await choose(adapters, request_of(student))
    await store.delete_student(student)
    assert (await choose(adapters, request_of(student))).fallback is Fallback.NO_STUDENT_MODEL
    assert adapters.host.residencies() == []
