"""The sweeper leaves nothing that no commit names, and takes nothing from those who work, on the real S3."""

import asyncio
from dataclasses import replace

import pytest

from mesh.adapters.blobs import RemovedObjects
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, CloneVoided, SweepReport
from testing.adapters import publish
from testing.leftovers import leftovers
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import Crash, CrashingBlobs, DelayingBlobs, PausingBlobs

HOUR_SECONDS = 3600


async def test_a_tenant_in_order_is_left_as_it_is(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    await publish(store, student, weights(), recipe=recipe())
    await store.void("clone_2")
    keys = await blobs.keys(f"{tenant}/")

    assert await store.sweep(older_than_seconds=0) == SweepReport()
    assert await blobs.keys(f"{tenant}/") == keys


async def test_weights_of_a_worker_that_died_go(store: AdapterStore, blobs: S3Blobs, student: str, tenant: str) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=1), tenant=tenant).stage(student, weights(), recipe=recipe())

    assert await store.sweep(older_than_seconds=HOUR_SECONDS) == SweepReport()
    report = await store.sweep(older_than_seconds=0)

    assert report.removed_versions == 1
    assert report.removed_bytes >= len(weights())
    assert await blobs.keys(f"{tenant}/") == []
    # The clone was never decided, so its next worker publishes.
    await publish(store, student, weights(), recipe=recipe())


async def test_a_version_that_lacks_its_manifest_is_finished(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).stage(student, weights(), recipe=recipe())

    assert await store.sweep(older_than_seconds=0) == SweepReport(finished_versions=1)

    assert [manifest.recipe.clone_id for manifest in await store.list_versions(student)] == ["clone_1"]
    assert await leftovers(blobs, store, tenant) == set()


async def test_a_version_that_lacks_its_description_is_finished(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    await blobs.erase(manifest.ref.config_key)

    assert await store.sweep(older_than_seconds=0) == SweepReport(finished_versions=1)

    assert set(await blobs.keys(f"{manifest.ref}/")) == manifest.keys
    assert await store.sweep(older_than_seconds=0) == SweepReport()


async def test_a_commit_whose_weights_are_gone_becomes_void(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    await blobs.erase(f"{tenant}/{student}/")

    assert (await store.sweep(older_than_seconds=0)).voided_commits == 1

    assert await store.sweep(older_than_seconds=0) == SweepReport()
    assert await store.void("clone_1") is None
    assert await blobs.keys(f"{manifest.ref}/") == []


async def test_a_pointer_of_a_student_without_versions_goes(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    await blobs.erase(f"{manifest.ref}/")

    report = await store.sweep(older_than_seconds=0)

    assert (report.voided_commits, report.corrected_pointers) == (1, 1)
    assert await store.resolve_active(student) is None
    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_a_placeholder_whose_activation_died_goes(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await store.stage(student, weights(), recipe=recipe())
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=1), tenant=tenant).activate(student, manifest.ref.version)
    pointer_key = f"{tenant}/{student}/active.json"
    assert pointer_key in await blobs.keys(f"{tenant}/{student}/")

    report = await store.sweep(older_than_seconds=HOUR_SECONDS)

    assert report == SweepReport(corrected_pointers=1)
    assert pointer_key not in await blobs.keys(f"{tenant}/{student}/")
    assert await store.list_versions(student) == [manifest]


async def test_a_placeholder_that_arrives_after_the_deletion_of_its_student_goes(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await store.stage(student, weights(), recipe=recipe())
    late_blobs = DelayingBlobs(blobs)
    activation = asyncio.create_task(AdapterStore(late_blobs, tenant=tenant).activate(student, manifest.ref.version))
    await late_blobs.delayed.wait()
    activation.cancel()
    await asyncio.wait([activation])
    await store.delete_student(student)

    # A cancelled call's thread goes on.
    await late_blobs.arrive()
    assert await blobs.keys(f"{tenant}/{student}/") != []
    assert await store.resolve_active(student) is None
    await store.sweep(older_than_seconds=HOUR_SECONDS)

    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_a_pointer_goes_with_the_last_remains_of_its_student(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    # As a deletion that was cut off leaves it, and beside it the weights of a clone that died.
    await blobs.erase(f"{manifest.ref}/")
    await blobs.create(store.ref(student, 2).weights_key, weights())

    await store.sweep(older_than_seconds=0)

    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_a_version_that_no_longer_exists_stays_in_no_list_of_the_pointer(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    for number in (1, 2):
        await publish(store, student, weights(seed=number), recipe=recipe(f"clone_{number}"))
    # It dies after the version is gone and before the pointer forgets that it was being retired.
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=7), tenant=tenant).retire(student, keep=1)
    await blobs.erase(f"{store.ref(student, 2)}/")

    await store.sweep(older_than_seconds=0)

    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_a_commit_whose_manifest_is_void_becomes_void(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).stage(student, weights(), recipe=recipe())
    # A deletion takes the manifest's key, and dies.
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).delete_student(student)
    assert store.ref(student, 1).manifest_key in await blobs.keys(f"{tenant}/{student}/")

    report = await store.sweep(older_than_seconds=0)

    assert (report.voided_commits, report.removed_versions) == (1, 1)
    assert await blobs.keys(f"{tenant}/{student}/") == []
    assert await store.void("clone_1") is None


async def test_a_corrupt_manifest_stays_for_a_person_and_stops_no_sweep(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    await blobs.erase(manifest.ref.manifest_key)
    await blobs.create(manifest.ref.manifest_key, b"{}")
    await blobs.create(store.ref(f"{student}-2", 1).weights_key, weights())

    assert (await store.sweep(older_than_seconds=0)).removed_versions == 1

    assert set(await blobs.keys(f"{tenant}/{student}/v1/")) == manifest.keys


async def test_a_pointers_past_goes_if_the_process_died_before_it_forgot_it(
    versioned: S3Blobs, student: str, tenant: str
) -> None:
    store = AdapterStore(versioned, tenant=tenant)
    manifest = await publish(store, student, weights(), recipe=recipe())
    (other_manifest,) = [await publish(store, f"{student}-2", weights(), recipe=recipe("clone_2"))]
    await versioned.erase(f"{manifest.ref}/")
    # The first write of this sweep deletes the pointer, and the second would forget its past versions.
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(versioned, writes=1), tenant=tenant).sweep(older_than_seconds=0)
    assert await versioned.keys(f"{tenant}/{student}/") == []

    await store.sweep(older_than_seconds=0)

    assert await versioned.erase(f"{tenant}/{student}/") == RemovedObjects()
    assert await store.list_versions(f"{student}-2") == [other_manifest]
    # The pointer of a student who is there keeps its past.
    assert (await versioned.forget(f"{tenant}/{student}-2/")).objects == 1


async def test_a_pointer_forgets_versions_that_are_gone(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    for number in (1, 2):
        await publish(store, student, weights(), recipe=recipe(f"clone_{number}"))
    await store.pin(student, 2)
    # As a deletion that was cut off, or a hand, leaves it.
    await blobs.erase(f"{store.ref(student, 2)}/")

    await store.sweep(older_than_seconds=0)

    assert await store.resolve_active(student) is None
    assert await store.list_pinned(student) == frozenset()
    assert await leftovers(blobs, store, tenant) == set()
    assert [manifest.ref.version for manifest in await store.list_versions(student)] == [1]


async def test_a_later_version_that_is_gone_overtakes_nobody(store: AdapterStore, blobs: S3Blobs, student: str) -> None:
    for number in (1, 2):
        await publish(store, student, weights(), recipe=recipe(f"clone_{number}"))
    await blobs.erase(f"{store.ref(student, 2)}/")

    newest = await publish(store, student, weights(), recipe=recipe("clone_3"))

    active = await store.resolve_active(student)
    assert active is not None
    assert active.sha256 == newest.sha256


async def test_a_version_without_any_commit_stays(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    # As if someone had restored the students' folders alone.
    await blobs.erase(f"{tenant}/_commits/")

    assert await store.sweep(older_than_seconds=0) == SweepReport()
    assert await store.list_versions(student) == [manifest]


@pytest.mark.parametrize("writes", range(6))
async def test_what_a_cut_off_retirement_left_goes(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, writes: int
) -> None:
    for number in (1, 2):
        await publish(store, student, weights(seed=number), recipe=recipe(f"clone_{number}"))
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=writes), tenant=tenant).retire(student, keep=1)

    await store.sweep(older_than_seconds=0)

    assert await leftovers(blobs, store, tenant) == set()
    # Up to the first step that tells anyone, nothing was decided.
    assert len(await store.list_versions(student)) == (2 if writes < 2 else 1)


@pytest.mark.parametrize("calls", range(1, 9))
async def test_a_worker_that_outlives_a_sweep_publishes_no_other_clones_weights(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    late_blobs = PausingBlobs(blobs, calls=calls)
    stage = asyncio.create_task(
        AdapterStore(late_blobs, tenant=tenant).stage(student, weights(seed=1), recipe=replace(recipe(), scale=0.5))
    )
    await late_blobs.reached(stage)
    await store.sweep(older_than_seconds=0)

    # Takes the number that the sweeper freed, if it did; with weights of the same size.
    await store.stage(student, weights(seed=2), recipe=recipe("clone_2"))
    late_blobs.go.set()
    await asyncio.wait([stage])

    for manifest in await store.list_versions(student):
        assert (await store.fetch(manifest.ref)).manifest == manifest
    await store.sweep(older_than_seconds=0)
    assert await leftovers(blobs, store, tenant) == set()
    if stage.exception() is None:
        assert stage.result() in await store.list_versions(student)
    else:
        assert isinstance(stage.exception(), CloneVoided)


@pytest.mark.parametrize("calls", range(9))
async def test_a_worker_that_publishes_while_a_sweeper_pauses_loses_nothing(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=1), tenant=tenant).stage(student, weights(), recipe=recipe())
    late_blobs = PausingBlobs(blobs, calls=calls)
    sweep = asyncio.create_task(AdapterStore(late_blobs, tenant=tenant).sweep(older_than_seconds=0))
    await late_blobs.reached(sweep)

    try:
        manifest = await publish(store, student, weights(seed=2), recipe=recipe("clone_2"))
    except CloneVoided:
        manifest = None
    late_blobs.go.set()
    await sweep

    assert manifest is not None
    assert await store.list_versions(student) == [manifest]
    await store.sweep(older_than_seconds=0)
    assert await leftovers(blobs, store, tenant) == set()


async def test_two_sweepers_at_once_do_no_harm(store: AdapterStore, blobs: S3Blobs, student: str, tenant: str) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())
    for number in (2, 3):
        with pytest.raises(Crash):
            await AdapterStore(CrashingBlobs(blobs, writes=number - 1), tenant=tenant).stage(
                student, weights(seed=number), recipe=recipe(f"clone_{number}")
            )

    await asyncio.gather(*(store.sweep(older_than_seconds=0) for _ in range(3)))

    assert manifest in await store.list_versions(student)
    assert await leftovers(blobs, store, tenant) == set()
