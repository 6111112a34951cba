"""The sweeper leaves nothing that no commit names, and takes nothing from those who work, on the real S3."""

import asyncio

import pytest

from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, CloneVoided, Swept
from testing.leftovers import leftovers
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import Crash, CrashingBlobs, PausingBlobs

HOUR_SECONDS = 3600


async def test_a_tenant_in_order_is_left_as_it_is(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    await store.publish(student, weights(), recipe=recipe())
    await store.void("clone_2")
    keys = await blobs.keys(f"{tenant}/")

    assert await store.sweep(older_than_seconds=0) == Swept()
    assert await blobs.keys(f"{tenant}/") == keys


async def test_weights_of_a_worker_that_died_go(store: AdapterStore, blobs: S3Blobs, student: str, tenant: str) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=1), tenant=tenant).stage(student, weights(), recipe=recipe())

    assert await store.sweep(older_than_seconds=HOUR_SECONDS) == Swept()
    swept = await store.sweep(older_than_seconds=0)

    assert swept.removed == 1
    assert swept.bytes >= len(weights())
    assert await blobs.keys(f"{tenant}/") == []
    # The clone was never decided, so its next worker publishes.
    await store.publish(student, weights(), recipe=recipe())


async def test_a_version_that_lacks_its_manifest_is_finished(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).stage(student, weights(), recipe=recipe())

    assert await store.sweep(older_than_seconds=0) == Swept(finished=1)

    assert [manifest.recipe.clone_id for manifest in await store.list_versions(student)] == ["clone_1"]
    assert await leftovers(blobs, store, tenant) == set()


async def test_a_commit_whose_weights_are_gone_becomes_void(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await store.publish(student, weights(), recipe=recipe())
    await blobs.erase(f"{tenant}/{student}/")

    assert (await store.sweep(older_than_seconds=0)).voided == 1

    assert await store.sweep(older_than_seconds=0) == Swept()
    assert await store.void("clone_1") is None
    assert await blobs.keys(f"{manifest.ref}/") == []


async def test_a_pointer_of_a_student_without_versions_goes(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await store.publish(student, weights(), recipe=recipe())
    await blobs.erase(f"{manifest.ref}/")

    swept = await store.sweep(older_than_seconds=0)

    assert (swept.voided, swept.pointers) == (1, 1)
    assert await store.resolve_active(student) is None
    assert await blobs.keys(f"{tenant}/{student}/") == []


async def test_a_pointer_forgets_versions_that_are_gone(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    for number in (1, 2):
        await store.publish(student, weights(), recipe=recipe(f"clone_{number}"))
    await store.pin(student, 2, pinned=True)
    # As a deletion that was cut off, or a hand, leaves it.
    await blobs.erase(f"{store.ref(student, 2)}/")

    await store.sweep(older_than_seconds=0)

    assert await store.resolve_active(student) is None
    assert await store.pinned(student) == frozenset()
    assert await leftovers(blobs, store, tenant) == set()
    assert [manifest.ref.version for manifest in await store.list_versions(student)] == [1]


async def test_a_later_version_that_is_gone_overtakes_nobody(store: AdapterStore, blobs: S3Blobs, student: str) -> None:
    for number in (1, 2):
        await store.publish(student, weights(), recipe=recipe(f"clone_{number}"))
    await blobs.erase(f"{store.ref(student, 2)}/")

    published = await store.publish(student, weights(), recipe=recipe("clone_3"))

    active = await store.resolve_active(student)
    assert active is not None
    assert active.sha256 == published.sha256


async def test_a_version_without_any_commit_stays(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    manifest = await store.publish(student, weights(), recipe=recipe())
    # As if someone had restored the students' folders alone.
    await blobs.erase(f"{tenant}/_commits/")

    assert await store.sweep(older_than_seconds=0) == Swept()
    assert await store.list_versions(student) == [manifest]


@pytest.mark.parametrize("writes", range(6))
async def test_what_a_cut_off_retirement_left_goes(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, writes: int
) -> None:
    for number in (1, 2):
        await store.publish(student, weights(seed=number), recipe=recipe(f"clone_{number}"))
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=writes), tenant=tenant).retire(student, keep=1)

    await store.sweep(older_than_seconds=0)

    assert await leftovers(blobs, store, tenant) == set()
    # Up to the first step that tells anyone, nothing was decided.
    assert len(await store.list_versions(student)) == (2 if writes < 2 else 1)


@pytest.mark.parametrize("calls", range(9))
async def test_a_worker_that_publishes_while_a_sweeper_pauses_loses_nothing(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=1), tenant=tenant).stage(student, weights(), recipe=recipe())
    late = PausingBlobs(blobs, calls=calls)
    sweep = asyncio.create_task(AdapterStore(late, tenant=tenant).sweep(older_than_seconds=0))
    await late.reached(sweep)

    try:
        manifest = await store.publish(student, weights(seed=2), recipe=recipe("clone_2"))
    except CloneVoided:
        manifest = None
    late.go.set()
    await sweep

    assert manifest is not None
    assert await store.list_versions(student) == [manifest]
    await store.sweep(older_than_seconds=0)
    assert await leftovers(blobs, store, tenant) == set()


async def test_two_sweepers_at_once_do_no_harm(store: AdapterStore, blobs: S3Blobs, student: str, tenant: str) -> None:
    manifest = await store.publish(student, weights(), recipe=recipe())
    for number in (2, 3):
        with pytest.raises(Crash):
            await AdapterStore(CrashingBlobs(blobs, writes=number - 1), tenant=tenant).stage(
                student, weights(seed=number), recipe=recipe(f"clone_{number}")
            )

    await asyncio.gather(*(store.sweep(older_than_seconds=0) for _ in range(3)))

    assert manifest in await store.list_versions(student)
    assert await leftovers(blobs, store, tenant) == set()
