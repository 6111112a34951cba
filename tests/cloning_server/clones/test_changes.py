"""The changes of a clone on a real Valkey: who may write the next one, and what a final one leaves."""

import asyncio

import pytest
from redis.asyncio import Redis

from cloning_server.clone import AttemptOutcome, Clone, CloneState, Failure
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.records import NO_LEASE
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.running.journal import Journal
from cloning_server.settings import CloningSettings
from mesh.errors import (
    CloneNotFound,
    CloneStoreUnavailable,
)
from mesh.valkey.connection import open_redis
from testing.parts.part import free_ports
from tests.cloning_server.clones.conftest import LONG_SECONDS, accept, claim_next, next_change
from tests.cloning_server.conftest import SEALING, STUDENT, baseline


async def test_a_change_after_somebody_elses_is_refused_and_leaves_no_trace(registry: Registry) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    await registry.changes.write(next_change(clone, CloneState.FINE_TUNING, progress=50), token=NO_LEASE)
    with pytest.raises(CloneOvertaken):
        await registry.changes.write(next_change(clone, CloneState.FAILED), token=NO_LEASE)
    assert [change.state for change in await registry.changes.read(clone.clone_id, after=0)] == [
        CloneState.QUEUED,
        CloneState.FINE_TUNING,
    ]
    assert await registry.leases.read_baseline(clone.clone_id) == baseline()


async def test_of_many_writers_of_one_change_one_wins(registry: Registry) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    results = await asyncio.gather(
        *(registry.changes.write(next_change(clone, progress=n), token=NO_LEASE) for n in range(20)),
        return_exceptions=True,
    )
    assert results.count(None) == 1
    assert len(await registry.changes.read(clone.clone_id, after=1)) == 1


async def test_a_change_that_is_sent_again_is_written_once(registry: Registry) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    change = next_change(clone, CloneState.COMPLETED, progress=100)
    await registry.changes.write(change, token=NO_LEASE)
    await registry.changes.write(change, token=NO_LEASE)
    assert await registry.changes.read(clone.clone_id, after=1) == [change]


@pytest.mark.parametrize("state", [CloneState.COMPLETED, CloneState.FAILED, CloneState.CANCELLED])
async def test_the_baseline_is_gone_as_soon_as_the_clone_is_final(registry: Registry, state: CloneState) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    assert await registry.leases.read_baseline(clone.clone_id) == baseline()
    await registry.changes.write(next_change(clone, state), token=NO_LEASE)
    with pytest.raises(CloneOvertaken):
        await registry.leases.read_baseline(clone.clone_id)


async def test_a_clone_that_ended_leaves_nothing_but_its_feed_and_its_names(
    registry: Registry, redis: Redis, settings: CloningSettings
) -> None:
    clone = await registry.intake.start(STUDENT, baseline(), request_id="enrol-17")
    lease = await claim_next(registry)
    await registry.changes.write(next_change(clone, CloneState.COMPLETED), token=lease.token)
    keys = {key.partition("}:")[2] async for key in redis.scan_iter(f"*{settings.tenant}*")}
    of_the_student = {f"feed:{clone.clone_id}", "request:enrol-17", f"clones:{STUDENT}", f"requests:{STUDENT}"}
    counters = {"counter", "change_counter", "lease_counter", "removals"}
    assert keys == of_the_student | counters | {"clones", "students", "ended"}


async def test_cancelling_ends_a_clone_whoever_holds_it(registry: Registry) -> None:
    clone_id = await accept(registry, STUDENT)
    lease = await claim_next(registry)
    await registry.changes.write(next_change(lease.clone), token=lease.token)
    assert (await registry.changes.cancel(clone_id)).state is CloneState.CANCELLED
    assert not await registry.leases.renew(lease, seconds=LONG_SECONDS)
    counts = await registry.listing.count()
    assert (counts.queued_clones, counts.running_clones) == (0, 0)
    assert (await registry.changes.cancel(clone_id)).state is CloneState.CANCELLED, "again is the same as once"


async def test_only_what_never_ran_and_nobody_holds_is_cancelled_without_asking_further(registry: Registry) -> None:
    waits = await registry.intake.start("first", baseline())
    assert await registry.changes.cancel_unstarted(waits)
    leased = await registry.intake.start("second", baseline())
    lease = await claim_next(registry)
    assert not await registry.changes.cancel_unstarted(leased)
    journal = Journal(registry.changes, lease)
    await journal.reach(CloneState.FINE_TUNING, "step 1")
    await journal.put_back("Waiting", outcome=AttemptOutcome.HANDED_BACK)
    assert not await registry.changes.cancel_unstarted(journal.clone), (
        "an attempt may have been paused just before it publishes"
    )


async def test_of_a_cancel_and_the_last_change_one_wins(registry: Registry) -> None:
    for n in range(20):
        clone_id = await accept(registry, f"student-{n}")
        journal = Journal(registry.changes, await claim_next(registry))
        failure = Failure(reason="TRAINING_DIVERGED", message="not finite")
        failure_result, cancelled = await asyncio.gather(
            journal.fail(failure), registry.changes.cancel(clone_id), return_exceptions=True
        )
        (*_, last) = await registry.changes.read(clone_id, after=0)
        assert isinstance(cancelled, Clone)
        assert cancelled.state is last.state
        assert isinstance(failure_result, CloneOvertaken) == (last.state is CloneState.CANCELLED)


async def test_erasing_leaves_nothing_of_a_student_and_everything_of_another(
    registry: Registry, upkeep_store: UpkeepStore
) -> None:
    for student_id in (STUDENT, "another"):
        clone = await registry.intake.start(student_id, baseline(), request_id=f"enrol-{student_id}")
        if student_id == STUDENT:
            assert await upkeep_store.erase(STUDENT) is None, "not while a clone is under way"
        await registry.changes.write(next_change(clone, CloneState.FAILED), token=NO_LEASE)
    erased = await upkeep_store.erase(STUDENT)
    assert erased is not None
    assert (erased.clones, erased.request_ids) == (1, 1)
    assert [clone.student_id for clone in (await registry.listing.list_clones()).clones] == ["another"]
    again = await upkeep_store.erase(STUDENT)
    assert again is not None
    assert (again.clones, again.request_ids) == (0, 0)
    # The request id is free again, and stands for a new clone.
    assert (await registry.intake.start(STUDENT, baseline(5), request_id=f"enrol-{STUDENT}")).sequence == 1


async def test_an_unknown_clone_is_not_found(registry: Registry) -> None:
    with pytest.raises(CloneNotFound):
        await registry.changes.find("clone_unknown")


async def test_a_store_that_is_not_there_is_told_as_such() -> None:
    (port,) = free_ports(1)
    async with open_redis(f"redis://127.0.0.1:{port}/0") as redis:
        registry = Registry.of(CloneStore(redis), sealing=SEALING)
        calls = [
            registry.intake.start(STUDENT, baseline()),
            registry.changes.find("clone_1"),
            registry.changes.read("clone_1", after=0),
            registry.leases.read_baseline("clone_1"),
            registry.leases.claim(seconds=60),
            registry.changes.cancel("clone_1"),
            registry.listing.list_clones(),
            registry.leases.record_pace(seconds=1, responses=1),
            registry.listing.count(),
        ]
        for call in calls:
            with pytest.raises(CloneStoreUnavailable):
                await call
