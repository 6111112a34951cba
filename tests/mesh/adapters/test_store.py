"""Publishing, activating and fetching, on the real S3."""

import asyncio

import pytest

from mesh.adapters.blobs import Blobs
from mesh.adapters.inspection import AdapterLimits
from mesh.adapters.manifest import Manifest
from mesh.adapters.ref import AdapterRef
from mesh.adapters.store import AdapterStore
from mesh.errors import AdapterCorrupt, AdapterIncompatible, InvalidField, ModelVersionNotFound
from testing.adapters import publish
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import CountingBlobs, Crash, CrashingBlobs, ForgetfulBlobs, PausingBlobs


async def overwrite(blobs: Blobs, key: str, data: bytes) -> None:
    """What a hand in the bucket can do, and the store never does."""
    await blobs.erase(key)
    await blobs.create(key, data)


async def test_what_was_published_is_what_is_fetched(store: AdapterStore, student: str, tenant: str) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())

    active = await store.resolve_active(student)
    assert active is not None
    stored = await store.fetch(active.ref, sha256=active.sha256)

    assert stored.weights == weights()
    assert stored.manifest == manifest
    assert stored.manifest.recipe == recipe()
    assert active.ref == AdapterRef(student_id=student, version=1, tenant=tenant)


async def test_the_next_clone_is_the_next_version_and_the_first_one_stays(store: AdapterStore, student: str) -> None:
    await publish(store, student, weights(seed=1), recipe=recipe("clone_1"))
    await publish(store, student, weights(seed=2), recipe=recipe("clone_2"))

    assert [manifest.ref.version for manifest in await store.list_versions(student)] == [1, 2]
    assert (await store.fetch(store.ref(student, 1))).weights == weights(seed=1)
    assert await _active_version(store, student) == 2


async def test_staging_makes_nothing_active(store: AdapterStore, student: str) -> None:
    manifest = await store.stage(student, weights(), recipe=recipe())
    assert await store.resolve_active(student) is None

    await store.activate(student, manifest.ref.version)
    assert await _active_version(store, student) == 1


async def test_a_crash_between_weights_and_manifest_publishes_nothing(
    store: AdapterStore, student: str, blobs: Blobs, tenant: str
) -> None:
    with pytest.raises(Crash):
        await publish(AdapterStore(CrashingBlobs(blobs, writes=1), tenant=tenant), student, weights(), recipe=recipe())

    assert await blobs.keys(_prefix(store, student)) == [store.ref(student, 1).weights_key]
    assert await store.list_versions(student) == []
    assert await store.resolve_active(student) is None
    with pytest.raises(ModelVersionNotFound):
        await store.fetch(store.ref(student, 1))
    with pytest.raises(ModelVersionNotFound):
        await store.activate(student, 1)


@pytest.mark.parametrize("writes", range(5))
async def test_publishing_after_a_crash_anywhere_ends_with_one_version(
    store: AdapterStore, student: str, blobs: Blobs, writes: int, tenant: str
) -> None:
    with pytest.raises(Crash):
        await publish(
            AdapterStore(CrashingBlobs(blobs, writes=writes), tenant=tenant), student, weights(seed=1), recipe=recipe()
        )

    # Training again gives other bytes; those that were committed count.
    manifest = await publish(store, student, weights(seed=2), recipe=recipe())

    assert await store.list_versions(student) == [manifest]
    assert await _active_version(store, student) == manifest.ref.version
    committed_seed = 1 if writes >= 2 else 2
    assert (await store.fetch(manifest.ref)).weights == weights(seed=committed_seed)


async def test_publishing_again_for_the_same_clone_makes_no_second_version(store: AdapterStore, student: str) -> None:
    first = await publish(store, student, weights(seed=1), recipe=recipe())
    second = await publish(store, student, weights(seed=2), recipe=recipe())

    assert second == first
    assert await store.list_versions(student) == [first]


async def test_two_workers_on_the_same_clone_publish_one_version(
    store: AdapterStore, student: str, blobs: Blobs
) -> None:
    manifests = await asyncio.gather(
        *(publish(store, student, weights(seed=seed), recipe=recipe()) for seed in range(4))
    )

    assert len({manifest.ref for manifest in manifests}) == 1
    assert await store.list_versions(student) == [manifests[0]]
    await store.fetch(manifests[0].ref, sha256=manifests[0].sha256)
    # The losers took their weights away again.
    assert len([key for key in await blobs.keys(_prefix(store, student)) if key.endswith(".safetensors")]) == 1


async def test_two_publishers_race_and_both_versions_survive_with_one_active(store: AdapterStore, student: str) -> None:
    manifests = await asyncio.gather(
        *(publish(store, student, weights(seed=seed), recipe=recipe(f"clone_{seed}")) for seed in range(4))
    )

    listed = await store.list_versions(student)
    assert sorted(manifests, key=lambda manifest: manifest.ref.version) == listed
    assert [manifest.ref.version for manifest in listed] == [1, 2, 3, 4]
    for seed, manifest in enumerate(manifests):
        assert (await store.fetch(manifest.ref)).weights == weights(seed=seed)
    assert await _active_version(store, student) == 4


async def test_a_write_whose_answer_was_lost_is_not_taken_for_a_rival(
    store: AdapterStore, student: str, blobs: Blobs, tenant: str
) -> None:
    manifest = await store.stage(student, weights(), recipe=recipe())
    forgetful_store = AdapterStore(ForgetfulBlobs(blobs), tenant=tenant)

    await forgetful_store.activate(student, manifest.ref.version)
    assert await forgetful_store.stage(student, weights(), recipe=recipe()) == manifest
    assert await _active_version(store, student) == manifest.ref.version


async def test_activating_goes_back_and_forth(store: AdapterStore, student: str) -> None:
    for number in (1, 2):
        await publish(store, student, weights(seed=number), recipe=recipe(f"clone_{number}"))

    assert (await store.activate(student, 1)).current.ref.version == 1
    assert await _active_version(store, student) == 1
    await store.activate(student, 2)
    assert await _active_version(store, student) == 2


@pytest.mark.parametrize("calls", range(5))
async def test_the_previous_version_is_the_one_that_was_replaced_whoever_came_between(
    store: AdapterStore, student: str, blobs: Blobs, tenant: str, calls: int
) -> None:
    for number in (1, 2, 3):
        await store.stage(student, weights(seed=number), recipe=recipe(f"clone_{number}"))
    assert (await store.activate(student, 1)).previous is None
    paused_blobs = PausingBlobs(blobs, calls=calls)
    activation = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).activate(student, 3))
    await paused_blobs.reached(activation)

    other = await store.activate(student, 2)
    paused_blobs.go.set()

    last = await activation
    first, second = (other, last) if other.current == last.previous else (last, other)
    assert (first.previous and first.previous.ref.version, second.previous) == (1, first.current)
    assert second.current == await store.resolve_active(student)


async def test_a_lost_answer_does_not_hide_the_version_that_was_active_before(
    store: AdapterStore, student: str, blobs: Blobs, tenant: str
) -> None:
    for number in (1, 2):
        await store.stage(student, weights(seed=number), recipe=recipe(f"clone_{number}"))
    forgetful_store = AdapterStore(ForgetfulBlobs(blobs), tenant=tenant)

    first = await forgetful_store.activate(student, 1)
    second = await forgetful_store.activate(student, 2)

    assert (first.previous, second.previous) == (None, first.current)
    assert second.current.ref.version == 2


async def test_the_manifest_of_one_version_is_read_without_the_others(
    store: AdapterStore, student: str, blobs: Blobs, tenant: str
) -> None:
    for number in (1, 2, 3):
        await store.stage(student, weights(seed=number), recipe=recipe(f"clone_{number}"))
    counting_blobs = CountingBlobs(blobs)

    manifest = await AdapterStore(counting_blobs, tenant=tenant).read_manifest(student, 2)

    assert (manifest.ref.version, counting_blobs.keys_read) == (2, [manifest.ref.manifest_key])
    with pytest.raises(ModelVersionNotFound):
        await store.read_manifest(student, 4)


async def test_a_publisher_that_was_overtaken_leaves_the_later_version_active(
    store: AdapterStore, student: str
) -> None:
    await store.stage(student, weights(seed=1), recipe=recipe("clone_1"))
    await publish(store, student, weights(seed=2), recipe=recipe("clone_2"))

    assert (await store.activate(student, 1, only_forward=True)).current.ref.version == 2
    assert await _active_version(store, student) == 2


async def test_a_flipped_byte_in_the_store_is_refused(store: AdapterStore, student: str, blobs: Blobs) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    flipped = bytearray(weights())
    flipped[-1] ^= 1
    await overwrite(blobs, manifest.ref.weights_key, bytes(flipped))

    with pytest.raises(AdapterCorrupt, match="sha256"):
        await store.fetch(manifest.ref)


async def test_weights_that_grew_or_vanished_are_refused(store: AdapterStore, student: str, blobs: Blobs) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())

    await overwrite(blobs, manifest.ref.weights_key, weights() + b"\0")
    with pytest.raises(AdapterCorrupt, match="bytes") as size_error:
        await store.fetch(manifest.ref)
    assert size_error.value.facts == {"student_id": student, "version": 1}

    await blobs.erase(manifest.ref.weights_key)
    with pytest.raises(AdapterCorrupt, match="missing"):
        await store.fetch(manifest.ref)


async def test_another_sha256_than_the_pointers_is_refused(store: AdapterStore, student: str) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())

    with pytest.raises(AdapterCorrupt, match="pointer"):
        await store.fetch(manifest.ref, sha256="f" * 64)


async def test_one_students_folder_copied_to_another_is_refused(
    store: AdapterStore, student: str, blobs: Blobs
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    other_ref = store.ref(f"{student}-2", 1)
    await blobs.create(other_ref.weights_key, weights())
    await blobs.create(other_ref.manifest_key, manifest.to_json())
    await _copy(blobs, _prefix(store, student) + "active.json", _prefix(store, f"{student}-2") + "active.json")

    with pytest.raises(AdapterCorrupt):
        await store.fetch(other_ref)
    with pytest.raises(AdapterCorrupt) as pointer:
        await store.resolve_active(f"{student}-2")
    assert pointer.value.facts == {"student_id": f"{student}-2"}


async def test_a_corrupt_manifest_hides_no_other_version(store: AdapterStore, student: str, blobs: Blobs) -> None:
    first = await publish(store, student, weights(seed=1), recipe=recipe("clone_1"))
    second = await publish(store, student, weights(seed=2), recipe=recipe("clone_2"))
    await overwrite(blobs, second.ref.manifest_key, b"{}")

    assert await store.list_versions(student) == [first]
    with pytest.raises(AdapterCorrupt):
        await store.fetch(second.ref)


async def test_a_pickle_is_refused_and_nothing_is_written(store: AdapterStore, student: str, blobs: Blobs) -> None:
    # What torch.save wrote before its zip format: protocol 2, then the magic number.
    pickled = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    with pytest.raises(AdapterCorrupt, match="safetensors"):
        await publish(store, student, pickled, recipe=recipe())

    assert await blobs.keys(_prefix(store, student)) == []


async def test_a_pickle_that_someone_put_into_the_store_is_refused(
    store: AdapterStore, student: str, blobs: Blobs
) -> None:
    pickled = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    manifest = Manifest.of(pickled, ref=store.ref(student, 1), recipe=recipe())
    await blobs.create(manifest.ref.weights_key, pickled)
    await blobs.create(manifest.ref.manifest_key, manifest.to_json())

    with pytest.raises(AdapterCorrupt, match="safetensors"):
        await store.fetch(manifest.ref)


async def test_an_adapter_above_the_limits_is_not_downloaded(
    store: AdapterStore, student: str, blobs: Blobs, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    small = AdapterStore(blobs, tenant=tenant, limits=AdapterLimits(size_bytes=len(weights()) - 1))
    await blobs.erase(manifest.ref.weights_key)

    with pytest.raises(AdapterIncompatible, match="limit") as limit_error:
        await small.fetch(manifest.ref)
    assert limit_error.value.facts == {"student_id": student, "version": 1}


async def test_a_student_without_a_version_has_none(store: AdapterStore) -> None:
    assert await store.resolve_active("nobody") is None
    assert await store.list_versions("nobody") == []
    with pytest.raises(ModelVersionNotFound) as refusal:
        await store.fetch(store.ref("nobody", 3))
    assert refusal.value.facts == {"student_id": "nobody", "version": 3}


async def test_a_student_whose_id_begins_like_anothers_sees_nothing_of_it(store: AdapterStore, student: str) -> None:
    await publish(store, f"{student}1", weights(), recipe=recipe())
    assert await store.list_versions(student) == []
    assert await store.list_versions(f"{student}12") == []


async def test_a_malformed_id_reaches_no_key(store: AdapterStore) -> None:
    with pytest.raises(InvalidField) as refusal:
        await store.resolve_active("../x")
    assert [violation.field for violation in refusal.value.violations] == ["student_id"]


async def _active_version(store: AdapterStore, student: str) -> int:
    active = await store.resolve_active(student)
    assert active is not None
    return active.ref.version


async def _copy(blobs: Blobs, source: str, target: str) -> None:
    blob = await blobs.read(source, limit_bytes=10_000)
    assert blob is not None
    await blobs.create(target, blob.data)


def _prefix(store: AdapterStore, student: str) -> str:
    return f"{store.ref(student, 1)}".removesuffix("v1")
