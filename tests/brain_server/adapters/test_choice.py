"""Which adapter answers, and what stays in memory: on the real store, without a model."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from torch import Tensor

from brain_server.adapters.choice import AdapterChoice, StudentAdapters
from brain_server.adapters.pointer_cache import ActivePointers
from brain_server.engine.contract import AdapterPolicy, Fallback, Generation
from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, StoredAdapter
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterStoreUnavailable,
    AivoError,
    ModelVersionNotFound,
    StudentModelNotFound,
)
from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.lora import from_safetensors
from mesh.tutoring.profile import StudentProfile
from testing.adapters import publish
from testing.models.random_adapters import publish_unchecked, random_weights, recipe, with_nan
from testing.parts.stores import S3Endpoint, seaweed

DIGEST = "d" * 64
WEIGHTS = random_weights(1, rank=1)
PROMPT = Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text="Why?"),))
HOUR_SECONDS = 3600.0


def _blobs(endpoint: S3Endpoint, bucket: str) -> S3Blobs:
    return S3Blobs(bucket=bucket, endpoint_url=endpoint.url, create_bucket=True)


@pytest.fixture
async def blobs(s3_endpoint: S3Endpoint, bucket: str) -> AsyncIterator[S3Blobs]:
    async with _blobs(s3_endpoint, bucket) as opened:
        yield opened


@pytest.fixture
def store(blobs: S3Blobs) -> AdapterStore:
    return AdapterStore(blobs)


@pytest.fixture
def student() -> str:
    return f"student-{uuid.uuid4().hex[:12]}"


async def parsed(stored: StoredAdapter) -> Mapping[str, Tensor]:
    return from_safetensors(stored.weights)


Adapters = StudentAdapters[Mapping[str, Tensor]]


def adapters_of(store: AdapterStore, *, ttl: float = 0, host_bytes: int = 1 << 30) -> Adapters:
    pointers = ActivePointers(store, ttl_seconds=ttl)
    return StudentAdapters(store, base_digest=DIGEST, pointers=pointers, prepare=parsed, host_bytes=host_bytes)


async def publish_random(store: AdapterStore, student: str, *, seed: int = 1, digest: str = DIGEST) -> Manifest:
    return await publish(store, student, random_weights(seed, rank=1), recipe=recipe(base_digest=digest, rank=1))


def asked(
    student: str | None, *, policy: AdapterPolicy = AdapterPolicy.PREFER, version: int | None = None
) -> Generation:
    return Generation(prompt=PROMPT, student_id=student, policy=policy, version=version)


async def chosen(adapters: Adapters, generation: Generation) -> AdapterChoice[Mapping[str, Tensor]]:
    async with adapters.choose(generation) as choice:
        return choice


async def test_the_active_adapter_answers(store: AdapterStore, student: str) -> None:
    manifest = await publish_random(store, student)
    choice = await chosen(adapters_of(store), asked(student))
    assert choice.fallback is None
    assert choice.adapter is not None
    assert (choice.adapter.identity.ref, choice.adapter.identity.sha256) == (manifest.ref, manifest.sha256)


async def test_the_base_model_never_answers_without_saying_why(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store)
    assert (await chosen(adapters, asked(None))).fallback is Fallback.NO_STUDENT
    assert (await chosen(adapters, asked(student))).fallback is Fallback.NO_STUDENT_MODEL
    await publish_random(store, student)
    base_only = asked(student, policy=AdapterPolicy.BASE_ONLY)
    assert (await chosen(adapters, base_only)).fallback is Fallback.BASE_ONLY


async def test_a_required_adapter_that_is_not_there_is_an_error(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store)
    with pytest.raises(StudentModelNotFound):
        await chosen(adapters, asked(student, policy=AdapterPolicy.REQUIRE))
    await publish_random(store, student)
    with pytest.raises(ModelVersionNotFound):
        await chosen(adapters, asked(student, version=7))


async def test_a_pinned_version_answers_though_another_is_active(store: AdapterStore, student: str) -> None:
    first = await publish_random(store, student, seed=1)
    await publish_random(store, student, seed=2)
    choice = await chosen(adapters_of(store), asked(student, version=1))
    assert choice.adapter is not None
    assert choice.adapter.identity.sha256 == first.sha256


async def test_a_new_version_is_seen_once_the_pointer_is_read_anew(store: AdapterStore, student: str) -> None:
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await publish_random(store, student, seed=1)
    await chosen(adapters, asked(student))
    second = await publish_random(store, student, seed=2)
    remembered = await chosen(adapters, asked(student))
    assert remembered.adapter is not None
    assert remembered.adapter.identity.ref.version == 1
    await adapters.pointers.resolve(student, refresh=True)
    renewed = await chosen(adapters, asked(student))
    assert renewed.adapter is not None
    assert renewed.adapter.identity.sha256 == second.sha256


async def test_a_student_deleted_and_cloned_anew_gets_the_new_bytes_under_the_old_number(
    store: AdapterStore, student: str
) -> None:
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await publish_random(store, student, seed=1)
    await chosen(adapters, asked(student))
    await store.delete_student(student)
    again = await publish_random(store, student, seed=2)
    assert again.ref.version == 1
    adapters.host.evict(student)
    choice = await chosen(adapters, asked(student))
    assert choice.adapter is not None
    assert choice.adapter.identity.sha256 == again.sha256


@pytest.mark.parametrize("policy", [AdapterPolicy.PREFER, AdapterPolicy.REQUIRE])
async def test_an_adapter_of_another_base_model_is_an_error_under_every_policy(
    store: AdapterStore, student: str, policy: AdapterPolicy
) -> None:
    await publish_random(store, student, digest="e" * 64)
    with pytest.raises(AdapterIncompatible):
        await chosen(adapters_of(store), asked(student, policy=policy))


@pytest.mark.parametrize("policy", [AdapterPolicy.PREFER, AdapterPolicy.REQUIRE])
async def test_weights_that_are_not_finite_are_an_error_under_every_policy(
    store: AdapterStore, blobs: S3Blobs, student: str, policy: AdapterPolicy
) -> None:
    of = recipe(base_digest=DIGEST, rank=1)
    await publish_unchecked(blobs, student, with_nan(WEIGHTS), recipe=of)
    with pytest.raises(AdapterCorrupt):
        await chosen(adapters_of(store), asked(student, policy=policy))


async def test_many_callers_share_one_fetch(store: AdapterStore, student: str) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await adapters.pointers.resolve(student)
    choices = await asyncio.gather(*(chosen(adapters, asked(student)) for _ in range(20)))
    assert len({id(choice.adapter) for choice in choices}) == 1


async def test_a_caller_who_gives_up_leaves_the_fetch_to_the_others(store: AdapterStore, student: str) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store, ttl=HOUR_SECONDS)
    await adapters.pointers.resolve(student)
    impatient, patient = (asyncio.create_task(chosen(adapters, asked(student))) for _ in range(2))
    await asyncio.sleep(0)  # both have begun
    impatient.cancel()
    assert (await patient).adapter is not None
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_the_least_recently_used_adapter_leaves_first_and_one_in_use_never(store: AdapterStore) -> None:
    students = [f"student-{uuid.uuid4().hex[:12]}" for _ in range(4)]
    for student in students:
        await publish_random(store, student)
    adapters = adapters_of(store, host_bytes=2 * len(WEIGHTS))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(adapters.lease(students[0]))
        for student in students[1:]:
            await chosen(adapters, asked(student))
        held = [residency.adapter.ref.student_id for residency in adapters.host.residencies()]
        assert held == [students[3], students[0]]
        assert [residency.leases for residency in adapters.host.residencies()] == [0, 1]
    assert sum(residency.bytes for residency in adapters.host.residencies()) <= 2 * len(WEIGHTS)
    assert adapters.host.counts.evictions == 2


async def test_an_evicted_adapter_serves_who_holds_it_and_is_fetched_anew_for_others(
    store: AdapterStore, student: str
) -> None:
    await publish_random(store, student)
    adapters = adapters_of(store)
    async with adapters.lease(student) as held:
        (dropped,) = adapters.host.evict(student)
        assert dropped == held.identity
        assert held.content
        async with adapters.lease(student) as fetched:
            assert fetched is not held
    assert len(adapters.host.residencies()) == 1


class TestAnOutage:
    """The store goes away under a brain that runs, and comes back."""

    @pytest.fixture
    async def endpoint(self, s3_endpoint: S3Endpoint, tmp_path: Path) -> AsyncIterator[S3Endpoint]:
        # Of its own, as others use the shared one; the credentials in the environment are the same.
        async with seaweed(tmp_path) as own:
            yield own

    async def test_an_adapter_in_memory_answers_and_others_fall_back_until_the_store_is_back(
        self, endpoint: S3Endpoint, bucket: str
    ) -> None:
        async with _blobs(endpoint, bucket) as blobs:
            store = AdapterStore(blobs)
            adapters = adapters_of(store)
            await publish_random(store, "resident")
            await publish_random(store, "stranger")
            await chosen(adapters, asked("resident"))

            await endpoint.part.kill()
            assert (await chosen(adapters, asked("resident"))).adapter is not None
            assert (await chosen(adapters, asked("resident", version=1))).adapter is not None
            stranger = await chosen(adapters, asked("stranger"))
            assert stranger.fallback is Fallback.ADAPTER_STORE_UNAVAILABLE
            for required in (asked("stranger", policy=AdapterPolicy.REQUIRE), asked("stranger", version=1)):
                with pytest.raises(AdapterStoreUnavailable):
                    await chosen(adapters, required)
            with pytest.raises(AdapterStoreUnavailable):
                await adapters.pointers.resolve("resident", refresh=True)

            await endpoint.part.start()
            back = await _until_adapter(adapters, "stranger")
            assert back.adapter is not None

    async def test_a_store_that_is_down_is_not_asked_by_every_caller(self, endpoint: S3Endpoint, bucket: str) -> None:
        async with _blobs(endpoint, bucket) as blobs:
            adapters = adapters_of(AdapterStore(blobs), ttl=HOUR_SECONDS)
            await endpoint.part.kill()
            with pytest.raises(AdapterStoreUnavailable):
                await adapters.pointers.resolve("anyone")
            await endpoint.part.start()
            # It is back, but that is not known yet: nobody asked.
            with pytest.raises(AdapterStoreUnavailable, match="a moment ago"):
                await adapters.pointers.resolve("someone-else")
            assert await adapters.pointers.resolve("someone-else", refresh=True) is None


async def _until_adapter(adapters: Adapters, student: str) -> AdapterChoice[Mapping[str, Tensor]]:
    """SeaweedFS says that it is up a moment before it finds all that it holds."""
    async with asyncio.timeout(30):
        while True:
            try:
                choice = await chosen(adapters, asked(student))
            except AivoError:
                continue
            if choice.adapter is not None:
                return choice
