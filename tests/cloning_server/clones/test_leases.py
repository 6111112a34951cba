"""Leases on a real Valkey: who may run a clone, until when, and in what order clones get their turn."""

import asyncio

import pytest

from cloning_server.clone import AttemptOutcome, CloneState, Priority, Terms
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.estimates import HEAD_START_PLACES
from cloning_server.clones.leases import Pause
from cloning_server.clones.registry import Registry
from cloning_server.running.journal import Journal
from mesh.errors import CloneAlreadyRunning, QueueFull
from tests.cloning_server.clones.conftest import LONG_SECONDS, SHORT_SECONDS, accept, claim_next, next_change
from tests.cloning_server.conftest import SEALING, STUDENT, baseline

BEHIND = Terms(queue_behind=True)


async def test_a_lease_that_is_renewed_is_nobody_elses(registry: Registry) -> None:
    await accept(registry, STUDENT)
    lease = await claim_next(registry, seconds=SHORT_SECONDS)
    assert await registry.leases.renew(lease, seconds=LONG_SECONDS)
    claimed = await registry.leases.claim(seconds=LONG_SECONDS)
    assert isinstance(claimed, Pause)
    assert claimed.seconds is not None
    assert claimed.seconds > SHORT_SECONDS, "the next claim learns when the lease expires"


async def test_an_expired_lease_is_taken_with_a_larger_token_and_the_old_one_writes_nothing(registry: Registry) -> None:
    clone_id = await accept(registry, STUDENT)
    paused = await claim_next(registry, seconds=SHORT_SECONDS)
    owner = await claim_next(registry)
    assert (owner.clone.clone_id, owner.token > paused.token) == (clone_id, True)
    with pytest.raises(CloneOvertaken):
        await registry.changes.write(next_change(paused.clone), token=paused.token)
    assert not await registry.leases.renew(paused, seconds=LONG_SECONDS)
    await registry.changes.write(next_change(owner.clone), token=owner.token)
    assert [change.sequence for change in await registry.changes.read(clone_id, after=0)] == [1, 2]


async def test_an_expired_lease_that_nobody_took_can_still_be_renewed(registry: Registry) -> None:
    await accept(registry, STUDENT)
    lease = await claim_next(registry, seconds=0.001)
    assert await registry.leases.renew(lease, seconds=LONG_SECONDS)
    await registry.changes.write(next_change(lease.clone), token=lease.token)


async def test_of_many_servers_that_see_a_lease_expire_one_gets_the_clone(clones: CloneStore) -> None:
    servers = [Registry.of(clones, sealing=SEALING) for _ in range(12)]
    await accept(servers[0], STUDENT)
    await claim_next(servers[0], seconds=0.001)

    async def insist(server: Registry) -> bool:
        """Whether this server got it, once somebody did."""
        while isinstance(claimed := await server.leases.claim(seconds=LONG_SECONDS), Pause):
            assert claimed.seconds is not None
            if claimed.seconds > SHORT_SECONDS:
                return False
            await asyncio.sleep(claimed.seconds)
        return True

    assert sum(await asyncio.gather(*map(insist, servers))) == 1


async def test_an_expired_lease_comes_before_whoever_waits(registry: Registry) -> None:
    expired_id = await accept(registry, "first")
    await claim_next(registry, seconds=0.001)
    await accept(registry, "second", priority=Priority.HIGH)
    # Longer than the lease, by the store's clock and by any.
    await asyncio.sleep(0.01)
    assert (await claim_next(registry)).clone.clone_id == expired_id


async def test_a_clone_that_is_put_off_is_claimed_when_its_time_has_come_and_not_before(registry: Registry) -> None:
    put_off, other = await accept(registry, "first"), await accept(registry, "second")
    journal = Journal(registry.changes, await claim_next(registry))
    await journal.reach(CloneState.FINE_TUNING, "step 1")
    await journal.put_back("Waiting", outcome="TRAINER_UNAVAILABLE", seconds=0.2)
    assert (await claim_next(registry)).clone.clone_id == other
    again = await claim_next(registry)
    assert (again.clone.clone_id, again.clone.attempt) == (put_off, 2)
    (attempt,) = again.clone.attempts
    assert (attempt.number, attempt.outcome) == (1, "TRAINER_UNAVAILABLE")
    assert attempt.ended_time is not None


async def test_an_attempt_that_fails_before_it_tells_anything_counts_and_one_handed_back_does_not(
    registry: Registry,
) -> None:
    await accept(registry, STUDENT)
    outcomes: list[str] = ["TRAINER_UNAVAILABLE", AttemptOutcome.HANDED_BACK, "MODEL_NOT_LOADED"]
    for outcome in outcomes:
        await Journal(registry.changes, await claim_next(registry)).put_back("Waiting", outcome=outcome)
    clone = (await claim_next(registry)).clone
    assert [(attempt.number, attempt.outcome) for attempt in clone.attempts] == [
        (1, "TRAINER_UNAVAILABLE"),
        (2, "MODEL_NOT_LOADED"),
    ]
    assert clone.attempt == 3


async def test_who_goes_on_with_a_lost_clone_says_so_in_its_feed(registry: Registry) -> None:
    await accept(registry, STUDENT)
    journal = Journal(registry.changes, await claim_next(registry, seconds=SHORT_SECONDS))
    await journal.reach(CloneState.FINE_TUNING, "step 1", fraction=0.5)
    taken_over = Journal(registry.changes, await claim_next(registry))
    await taken_over.take_over()
    await taken_over.reach(CloneState.FINE_TUNING, "step 1")
    first, second = taken_over.clone.attempts
    assert (first.number, first.outcome) == (1, AttemptOutcome.LEASE_EXPIRED)
    assert (second.number, second.outcome, second.ended_time) == (2, "", None)
    states = [
        (change.state, change.attempt, change.progress)
        for change in await registry.changes.read(journal.clone.clone_id, after=2)
    ]
    assert states[0] == (CloneState.QUEUED, 2, 0)


async def test_priorities_come_first_and_acceptance_decides_within_one(registry: Registry) -> None:
    low = [await accept(registry, f"low-{n}", priority=Priority.LOW) for n in range(2)]
    normal = [await accept(registry, f"normal-{n}") for n in range(2)]
    high = [await accept(registry, f"high-{n}", priority=Priority.HIGH) for n in range(2)]
    assert [(await claim_next(registry)).clone.clone_id for _ in range(6)] == [*high, *normal, *low]


async def test_no_stream_of_higher_priority_starves_a_lower_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEAD_START_PLACES, Priority.LOW, -10)
    low = await accept(registry, "low", priority=Priority.LOW)
    others = [await accept(registry, f"student-{n}") for n in range(15)]
    clone_ids = [(await claim_next(registry)).clone.clone_id for _ in range(16)]
    assert clone_ids == [*others[:9], low, *others[9:]] or clone_ids == [*others[:10], low, *others[10:]]


async def test_a_student_has_one_clone_that_may_run_and_one_behind_it(registry: Registry) -> None:
    first = await accept(registry, STUDENT)
    with pytest.raises(CloneAlreadyRunning) as alone:
        await registry.intake.start(STUDENT, baseline())
    second = await accept(registry, STUDENT, queue_behind=True)
    with pytest.raises(CloneAlreadyRunning) as full:
        await registry.intake.start(STUDENT, baseline(), terms=BEHIND)
    assert (alone.value.facts["clone_id"], full.value.facts["clone_id"]) == (first, second)

    lease = await claim_next(registry)
    assert lease.clone.clone_id == first
    assert isinstance(await registry.leases.claim(seconds=LONG_SECONDS), Pause), "they never run at the same time"
    await registry.changes.write(next_change(lease.clone, CloneState.COMPLETED), token=lease.token)
    assert (await claim_next(registry)).clone.clone_id == second


async def test_the_clone_behind_keeps_the_place_of_its_own_acceptance(registry: Registry) -> None:
    await accept(registry, STUDENT)
    behind = await accept(registry, STUDENT, queue_behind=True)
    later = await accept(registry, "another")
    lease = await claim_next(registry)
    await registry.changes.write(next_change(lease.clone, CloneState.FAILED), token=lease.token)
    assert [(await claim_next(registry)).clone.clone_id for _ in range(2)] == [behind, later]


async def test_cancelling_the_first_frees_the_one_behind_and_the_other_way_round(registry: Registry) -> None:
    first = await accept(registry, STUDENT)
    second = await accept(registry, STUDENT, queue_behind=True)
    await registry.changes.cancel(second)
    third = await accept(registry, STUDENT, queue_behind=True)
    await registry.changes.cancel(first)
    assert (await claim_next(registry)).clone.clone_id == third


async def test_a_clone_behind_another_counts_as_one_that_waits(clones: CloneStore) -> None:
    registry = Registry.of(clones, sealing=SEALING, queue_limit=2)
    await accept(registry, STUDENT)
    await accept(registry, STUDENT, queue_behind=True)
    assert (await registry.listing.count()).queued_clones == 2
    with pytest.raises(QueueFull):
        await registry.intake.start("another", baseline())


async def test_clones_are_claimed_once_each_in_the_order_of_acceptance(registry: Registry) -> None:
    accepted = [(await registry.intake.start(f"student-{n}", baseline())).clone_id for n in range(9)]
    assert [(await claim_next(registry)).clone.clone_id for _ in range(9)] == accepted
    assert isinstance(await registry.leases.claim(seconds=60), Pause)


async def test_many_who_claim_at_once_get_a_clone_each(registry: Registry) -> None:
    accepted = {(await registry.intake.start(f"student-{n}", baseline())).clone_id for n in range(10)}
    leases = await asyncio.gather(*(claim_next(registry) for _ in range(10)))
    assert sorted(lease.clone.clone_id for lease in leases) == sorted(accepted)
    assert len({lease.token for lease in leases}) == 10, "no two leases have one token"


async def test_a_clone_that_is_queued_again_gets_its_old_place(registry: Registry) -> None:
    first, second = [await registry.intake.start(f"student-{n}", baseline()) for n in range(2)]
    lease = await claim_next(registry)
    assert lease.clone == first
    await registry.changes.write(next_change(first, CloneState.QUEUED), token=lease.token, delay_seconds=0)
    assert [(await claim_next(registry)).clone.clone_id for _ in range(2)] == [first.clone_id, second.clone_id]


async def test_a_call_that_is_cancelled_ends_as_cancelled_wherever_it_is(registry: Registry) -> None:
    for n in range(300):

        async def call() -> None:
            await registry.intake.start(f"student-{n}", baseline())  # noqa: B023 - awaited within the turn
            await registry.leases.claim(seconds=60)

        task = asyncio.create_task(call())
        for _ in range(n % 30):
            await asyncio.sleep(0)
        if task.cancel():
            await asyncio.wait([task])
            assert task.cancelled()
