"""A clone publishes once or never, whoever dies, pauses or meets, on the real S3."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore, CloneVoided
from mesh.errors import AdapterIncompatible, ModelVersionNotFound, PublishConflict
from mesh.tutoring.policy import Scaffold, Scaffolding, SkillSupport
from testing.adapters import publish
from testing.leftovers import leftovers
from testing.policy import POLICY
from tests.mesh.adapters.conftest import recipe, weights
from tests.mesh.adapters.faulty_blobs import Crash, CrashingBlobs, PausingBlobs

# One more than the first publication of a student makes: the last worker has ended when the others' turn comes.
CALLS = range(18)


async def test_a_voided_clone_publishes_nothing_and_leaves_nothing(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    assert await store.void("clone_1") is None
    assert await store.void("clone_1") is None

    with pytest.raises(CloneVoided):
        await publish(store, student, weights(), recipe=recipe("clone_1"))

    assert await blobs.keys(f"{tenant}/") == [f"{tenant}/_commits/clone_1.json"]
    manifest = await publish(store, student, weights(), recipe=recipe("clone_2"))
    assert await store.list_versions(student) == [manifest]


async def test_voiding_a_clone_that_published_tells_what_it_published(store: AdapterStore, student: str) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe())

    assert await store.void("clone_1") == manifest
    assert await store.stage(student, weights(), recipe=recipe()) == manifest
    assert await store.list_versions(student) == [manifest]


async def test_voiding_a_clone_that_died_after_its_commit_completes_the_version(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).stage(student, weights(), recipe=recipe())
    assert await store.list_versions(student) == []

    manifest = await store.void("clone_1")

    assert manifest is not None
    assert await store.list_versions(student) == [manifest]
    await store.activate(student, manifest.ref.version)


async def test_a_manifest_that_is_too_large_to_be_read_again_is_refused_and_nothing_stays(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    skill = SkillSupport(subject="s" * 64, skill="\x01" * 128, scaffold=Scaffold.STEADY, correct=1, judged=2)
    policy = replace(POLICY, scaffolding=Scaffolding(judged=200, skills=(skill,) * 100))

    with pytest.raises(AdapterIncompatible, match="manifest"):
        await store.stage(student, weights(), recipe=replace(recipe(), policy=policy))

    assert await blobs.keys(f"{tenant}/") == []


async def test_a_version_that_another_server_completes_keeps_fields_that_this_server_does_not_know(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str
) -> None:
    with pytest.raises(Crash):
        await AdapterStore(CrashingBlobs(blobs, writes=2), tenant=tenant).stage(student, weights(), recipe=recipe())
    key = f"{tenant}/_commits/clone_1.json"
    commit = await blobs.read(key, limit_bytes=10_000)
    assert commit is not None
    newer = commit.data.replace(b'"schema": 2', b'"schema": 2, "later": 3')
    await blobs.replace(key, newer, etag=commit.etag)

    manifest = await store.void("clone_1")

    assert manifest is not None
    document = await blobs.read(manifest.ref.manifest_key, limit_bytes=10_000)
    assert document is not None
    assert document.data == newer != commit.data


async def test_a_clone_of_another_student_is_refused(store: AdapterStore, student: str) -> None:
    await publish(store, student, weights(), recipe=recipe())
    with pytest.raises(PublishConflict):
        await publish(store, f"{student}-2", weights(), recipe=recipe())
    assert await store.list_versions(f"{student}-2") == []


async def test_a_student_named_like_a_folder_of_the_store_reaches_no_commit(store: AdapterStore, student: str) -> None:
    manifest = await publish(store, student, weights(), recipe=recipe("active"))
    for name in ("commits", "active", "active.json"):
        await store.delete_student(name)
    assert await store.void("active") == manifest


@pytest.mark.parametrize("calls", CALLS)
async def test_a_worker_that_wakes_up_after_its_clone_was_voided_publishes_before_or_never(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    voided_version = None

    async def void() -> None:
        nonlocal voided_version
        voided_version = await store.void("clone_1")

    is_published = await _meet(blobs, tenant, student, calls=calls, then=void)

    assert (voided_version is not None) == is_published
    assert [manifest.ref.version for manifest in await store.list_versions(student)] == ([1] if is_published else [])
    assert await leftovers(blobs, store, tenant) == set()


@pytest.mark.parametrize("calls", CALLS)
async def test_a_worker_that_wakes_up_after_its_student_was_deleted_leaves_nothing(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    async def delete() -> None:
        await store.void("clone_1")
        await store.delete_student(student)

    await _meet(blobs, tenant, student, calls=calls, then=delete)

    assert await store.list_versions(student) == []
    assert await store.resolve_active(student) is None
    # Nothing but the void commit, which names nobody, and without the sweeper's help.
    assert await blobs.keys(f"{tenant}/") == [f"{tenant}/_commits/clone_1.json"]
    assert await store.void("clone_1") is None


@pytest.mark.parametrize("calls", CALLS)
async def test_a_worker_whose_clone_nobody_voided_publishes_whole_or_never_when_its_student_is_deleted(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    is_published = await _meet(blobs, tenant, student, calls=calls, then=lambda: store.delete_student(student))

    assert len(await store.list_versions(student)) <= int(is_published)
    assert await leftovers(blobs, store, tenant) == set()
    if not is_published:
        assert await store.void("clone_1") is None


@pytest.mark.parametrize("calls", CALLS)
async def test_a_worker_that_a_sweeper_without_patience_met_publishes_whole_or_never(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    is_published = await _meet(blobs, tenant, student, calls=calls, then=lambda: store.sweep(older_than_seconds=0))

    assert len(await store.list_versions(student)) == int(is_published)
    assert await leftovers(blobs, store, tenant) == set()


@pytest.mark.parametrize("calls", range(5))
async def test_a_version_that_is_retired_while_it_is_activated_is_active_or_gone(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    await publish(store, student, weights(seed=1), recipe=recipe("clone_1"))
    await publish(store, student, weights(seed=2), recipe=recipe("clone_2"))
    paused_blobs = PausingBlobs(blobs, calls=calls)
    activation = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).activate(student, 1))
    await paused_blobs.reached(activation)

    retired = await store.retire(student, keep=1)
    paused_blobs.go.set()

    if retired:
        assert retired == [1]
        with pytest.raises(ModelVersionNotFound):
            await activation
    else:
        await activation
    active = await store.resolve_active(student)
    assert active is not None
    assert active.ref.version == (2 if retired else 1)
    assert await leftovers(blobs, store, tenant) == set()


@pytest.mark.parametrize("calls", range(10))
async def test_a_student_who_is_deleted_while_a_version_is_activated_has_none(
    store: AdapterStore, blobs: S3Blobs, student: str, tenant: str, calls: int
) -> None:
    await store.stage(student, weights(), recipe=recipe())
    paused_blobs = PausingBlobs(blobs, calls=calls)
    activation = asyncio.create_task(AdapterStore(paused_blobs, tenant=tenant).activate(student, 1))
    await paused_blobs.reached(activation)

    await store.delete_student(student)
    paused_blobs.go.set()

    await asyncio.wait([activation])
    assert activation.exception() is None or isinstance(activation.exception(), ModelVersionNotFound)
    assert await store.resolve_active(student) is None
    assert await blobs.keys(f"{tenant}/{student}/") == []


async def _meet(
    blobs: S3Blobs, tenant: str, student: str, *, calls: int, then: Callable[[], Awaitable[object]]
) -> bool:
    """Publishes as `clone_1`, pauses before the n-th call for what happens then, and returns whether it published."""
    paused_blobs = PausingBlobs(blobs, calls=calls)
    worker = asyncio.create_task(
        publish(AdapterStore(paused_blobs, tenant=tenant), student, weights(seed=calls), recipe=recipe("clone_1"))
    )
    await paused_blobs.reached(worker)
    await then()
    paused_blobs.go.set()
    try:
        await worker
    except (CloneVoided, ModelVersionNotFound):
        return False
    return True
