"""What stays of a student's versions, and how all of a student goes, on the real S3."""

import asyncio
from contextlib import suppress

import pytest

from mesh.adapters.manifest import Manifest
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, CloneVoided, RemovedAdapters
from mesh.errors import ModelVersionNotFound
from testing.adapters import publish
from testing.leftovers import leftovers
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import Crash, CrashingBlobs, PausingBlobs


async def _publish(store: AdapterStore, student: str, count: int) -> list[Manifest]:
    return [
        await publish(store, student, weights(seed=number), recipe=recipe(f"{student}_{number}"))
        for number in range(1, count + 1)
    ]


async def _versions(store: AdapterStore, student: str) -> list[int]:
    return [manifest.ref.version for manifest in await store.list_versions(student)]


async def test_the_newest_the_pinned_and_the_active_stay(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifests = await _publish(store, student, 6)
    await store.pin(student, 2)
    await store.activate(student, 3)

    assert await store.retire(student, keep=2) == [1, 4]

    assert await _versions(store, student) == [2, 3, 5, 6]
    assert await store.retire(student, keep=2) == []
    with pytest.raises(ModelVersionNotFound):
        await store.fetch(manifests[0].ref)
    with pytest.raises(ModelVersionNotFound):
        await store.activate(student, 4)
    with pytest.raises(ModelVersionNotFound):
        await store.pin(student, 1)
    with pytest.raises(CloneVoided):
        await store.stage(student, weights(seed=1), recipe=recipe(f"{student}_1"))
    assert await leftovers(blobs, store, tenant) == set()


async def test_a_pin_is_told_and_taken_back(store: AdapterStore, student: str) -> None:
    assert await store.list_pinned(student) == frozenset()
    await _publish(store, student, 2)

    await asyncio.gather(store.pin(student, 1), store.pin(student, 2))
    assert await store.list_pinned(student) == {1, 2}
    assert await store.retire(student, keep=1) == []

    await store.unpin(student, 1)
    await store.unpin(student, 1)
    assert await store.list_pinned(student) == {2}
    assert await store.retire(student, keep=1) == [1]


async def test_only_a_version_that_exists_can_be_pinned(store: AdapterStore, blobs: S3Blobs, student: str) -> None:
    with pytest.raises(ModelVersionNotFound):
        await store.pin(student, 1)
    assert await store.retire(student, keep=1) == []
    assert await blobs.keys(f"{store.ref(student, 1).tenant}/") == []


async def test_a_version_number_is_never_given_again(store: AdapterStore, student: str) -> None:
    await _publish(store, student, 3)
    await store.activate(student, 1)
    await store.retire(student, keep=1)

    manifest = await publish(store, student, weights(), recipe=recipe("next"))

    assert manifest.ref.version == 4
    with pytest.raises(ValueError, match="1 or more"):
        await store.retire(student, keep=0)


@pytest.mark.parametrize("writes", range(6))
async def test_retiring_after_a_crash_anywhere_ends_the_same(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, writes: int
) -> None:
    await _publish(store, student, 3)
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=writes), tenant=tenant).retire(student, keep=2)

    await store.retire(student, keep=2)

    assert await _versions(store, student) == [2, 3]
    assert await leftovers(blobs, store, tenant) == set()
    assert await store.retire(student, keep=2) == []


@pytest.mark.parametrize("calls", range(13))
async def test_a_version_that_is_pinned_while_it_is_retired_stays_or_is_gone(
    store: AdapterStore, student: str, blobs: S3Blobs, tenant: str, calls: int
) -> None:
    await _publish(store, student, 2)
    paused_blobs = PausingBlobs(blobs, calls=calls)
    retirement = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).retire(student, keep=1))
    await paused_blobs.reached(retirement)

    try:
        await store.pin(student, 1)
    except ModelVersionNotFound:
        is_pinned = False
    else:
        is_pinned = True
    paused_blobs.go.set()

    assert await retirement == ([] if is_pinned else [1])
    assert await store.list_pinned(student) == ({1} if is_pinned else frozenset())
    assert await _versions(store, student) == ([1, 2] if is_pinned else [2])


@pytest.mark.parametrize("calls", range(4))
async def test_a_version_that_is_retired_while_it_is_fetched_is_whole_or_gone(
    store: AdapterStore, student: str, blobs: S3Blobs, tenant: str, calls: int
) -> None:
    first, _ = await _publish(store, student, 2)
    paused_blobs = PausingBlobs(blobs, calls=calls)
    fetch = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).fetch(first.ref, sha256=first.sha256))
    await paused_blobs.reached(fetch)

    await store.retire(student, keep=1)
    paused_blobs.go.set()

    await asyncio.wait([fetch])
    if calls < 2:
        assert isinstance(fetch.exception(), ModelVersionNotFound)
    else:
        assert fetch.result().weights == weights(seed=1)


async def test_nothing_is_left_of_a_deleted_student_and_others_keep_all(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    await _publish(store, student, 3)
    await store.pin(student, 1)
    (other,) = await _publish(store, f"{student}-2", 1)
    size = sum([entry.size_bytes async for entry in blobs.entries(f"{tenant}/{student}/")])

    # Three versions of three objects each, and the pointer.
    assert await store.delete_student(student) == RemovedAdapters(versions=3, objects=10, bytes=size)

    assert await store.resolve_active(student) is None
    assert await store.list_versions(student) == []
    assert await store.list_pinned(student) == frozenset()
    with pytest.raises(ModelVersionNotFound):
        await store.fetch(store.ref(student, 3))
    assert await store.delete_student(student) == RemovedAdapters(versions=0, objects=0, bytes=0)
    assert await store.list_versions(f"{student}-2") == [other]
    assert await leftovers(blobs, store, tenant) == set()
    await _names_nobody(blobs, tenant, student)


async def test_a_student_with_a_manifest_that_can_not_be_read_can_be_deleted(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    for key in (manifest.ref.manifest_key, f"{tenant}/_commits/clone_1.json"):
        await blobs.erase(key)
        await blobs.create(key, manifest.to_json() + b" " * 200_000)

    await store.delete_student(student)
    await store.sweep(older_than_seconds=0)

    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_a_manifest_that_was_written_before_sizes_were_limited_is_read_and_removed(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    for key in (manifest.ref.manifest_key, f"{tenant}/_commits/clone_1.json"):
        await blobs.erase(key)
        await blobs.create(key, manifest.to_json() + b" " * 66_000)

    assert await store.void("clone_1") == manifest
    await store.delete_student(student)

    assert await store.void("clone_1") is None
    await _names_nobody(blobs, tenant, student)


async def test_a_deleted_students_clones_publish_no_more_and_new_ones_begin_anew(
    store: AdapterStore, student: str
) -> None:
    await _publish(store, student, 2)
    await store.delete_student(student)

    with pytest.raises(CloneVoided):
        await publish(store, student, weights(seed=1), recipe=recipe(f"{student}_1"))
    new_manifest = await publish(store, student, weights(seed=3), recipe=recipe(f"{student}_3"))

    assert new_manifest.ref.version == 1
    assert await _versions(store, student) == [1]


@pytest.mark.parametrize("known_clones", [0, 3])
@pytest.mark.parametrize("writes", range(13))
async def test_deleting_after_a_crash_anywhere_ends_the_same(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, *, writes: int, known_clones: int
) -> None:
    clone_ids = [f"{student}_{number}" for number in range(1, known_clones + 1)]
    await _publish(store, student, 2)
    # A third one, cut off before its manifest.
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).stage(
            student, weights(), recipe=recipe(f"{student}_3")
        )
    crashing = AdapterStore(CrashingBlobs(blobs, writes=writes), tenant=tenant)
    with pytest.raises(Crash):
        await crashing.delete_student(student, clone_ids=clone_ids)
    assert await store.resolve_active(student) is None or writes == 0

    await store.delete_student(student, clone_ids=clone_ids)

    assert await blobs.keys(f"{tenant}/{student}/") == []
    for number in (1, 2, 3):
        assert await store.void(f"{student}_{number}") is None
    await _names_nobody(blobs, tenant, student)


@pytest.mark.parametrize("calls", range(13))
async def test_a_clone_that_publishes_while_its_student_is_deleted_leaves_a_whole_version_or_nothing(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    await _publish(store, student, 1)
    paused_blobs = PausingBlobs(blobs, calls=calls)
    deletion = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).delete_student(student))
    await paused_blobs.reached(deletion)

    # Nobody voided it before, so that it may count as the first of a new student.
    await publish(store, student, weights(seed=2), recipe=recipe(f"{student}_2"))
    paused_blobs.go.set()
    await deletion

    versions = await store.list_versions(student)
    if not versions:
        assert await store.void(f"{student}_2") is None
        await _names_nobody(blobs, tenant, student)
    assert await leftovers(blobs, store, tenant) == set()


@pytest.mark.parametrize("calls", range(9))
@pytest.mark.parametrize("has_pointer", [False, True], ids=("first-pointer", "moved-pointer"))
async def test_an_activation_that_meets_a_deletion_brings_nothing_back(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int, *, has_pointer: bool
) -> None:
    for number in (1, 2):
        await store.stage(student, weights(seed=number), recipe=recipe(f"{student}_{number}"))
    if has_pointer:
        await store.activate(student, 1)
    paused_blobs = PausingBlobs(blobs, calls=calls)
    activation = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).activate(student, 2))
    await paused_blobs.reached(activation)

    await store.delete_student(student)
    # Weights that a new clone of the same student has written and not published yet.
    await blobs.create(store.ref(student, 3).weights_key, weights())
    paused_blobs.go.set()
    await asyncio.wait([activation])

    assert await blobs.keys(f"{tenant}/{student}/") == [store.ref(student, 3).weights_key]
    assert activation.exception() is None or isinstance(activation.exception(), ModelVersionNotFound)


@pytest.mark.parametrize("calls", range(9))
async def test_a_deletion_that_meets_an_activation_leaves_nothing(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    await store.stage(student, weights(), recipe=recipe(f"{student}_1"))
    paused_blobs = PausingBlobs(blobs, calls=calls)
    deletion = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).delete_student(student))
    await paused_blobs.reached(deletion)

    with suppress(ModelVersionNotFound):
        await store.activate(student, 1)
    paused_blobs.go.set()
    await deletion

    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_the_last_pin_that_goes_takes_the_pointer_with_it(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await store.stage(student, weights(), recipe=recipe())
    await store.pin(student, 1)
    await store.unpin(student, 1)

    assert set(await blobs.keys(f"{tenant}/{student}/")) == manifest.keys


@pytest.mark.parametrize("known_clones", [0, 3])
async def test_past_versions_of_a_deleted_student_go_too(
    versioned: S3Blobs, student: str, tenant: str, known_clones: int
) -> None:
    clone_ids = [f"{student}_{number}" for number in range(1, known_clones + 1)]
    store = AdapterStore(versioned, tenant=tenant)
    await _publish(store, student, 3)
    await store.retire(student, keep=1)
    await store.pin(student, 3)
    (other,) = await _publish(store, f"{student}-2", 1)

    deletion = await store.delete_student(student, clone_ids=clone_ids)

    assert deletion.versions == 1
    # Weights, description and manifest, each with the mark of its deletion, their commit's past, and a pointer that was
    # created and then moved thrice for the versions, twice for the retirement and once for the pin.
    assert deletion.objects == 6 + 1 + 7
    assert await store.delete_student(student) == RemovedAdapters(versions=0, objects=0, bytes=0)
    assert await store.list_versions(f"{student}-2") == [other]
    # Were a past version left under the student's folder or in a commit, erasing the tenant would count it.
    await store.delete_student(f"{student}-2")
    voids = await versioned.keys(f"{tenant}/")
    assert (await versioned.erase(f"{tenant}/")).objects == len(voids) == 4


async def _names_nobody(blobs: S3Blobs, tenant: str, student: str) -> None:
    """Proves that no commit tells of the student."""
    for key in await blobs.keys(f"{tenant}/_commits/"):
        blob = await blobs.read(key, limit_bytes=10_000)
        assert blob is not None
        assert f'"{student}"'.encode() not in blob.data
