"""Leases on a real Valkey: who may run a clone, until when, and in what order clones get their turn."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cloning_server.clone import AttemptOutcome, Clone, CloneState, Consent, Failure, Priority, Terms
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.estimates import HEAD_START_PLACES
from cloning_server.clones.leases import CloneLease, Pause
from cloning_server.clones.records import NO_LEASE
from cloning_server.clones.registry import Registry
from cloning_server.running.journal import Journal
from mesh.errors import CloneAlreadyRunning, ConsentRequired, QueueFull
from tests.cloning_server.conftest import STUDENT, baseline

LONG, SHORT = 60.0, 0.05
BEHIND = Terms(queue_behind=True)


@pytest.fixture
def registry(clones: CloneStore) -> Registry:
    return Registry.on(clones, queue_limit=2_000)


async def take(registry: Registry, *, seconds: float = LONG) -> CloneLease:
    """Claims the clone whose turn it is, or the next one whose lease expires."""
    while isinstance(claimed := await registry.leases.claim(seconds=seconds), Pause):
        assert claimed.seconds is not None, "nothing will ever be claimed"
        await asyncio.sleep(claimed.seconds)
    return claimed


async def accept(
    registry: Registry, student_id: str, *, priority: Priority = Priority.NORMAL, queue_behind: bool = False
) -> str:
    terms = Terms(priority=priority, queue_behind=queue_behind)
    return (await registry.intake.start(student_id, baseline(), terms=terms)).clone_id


def next_of(clone: Clone, state: CloneState = CloneState.FINE_TUNING) -> Clone:
    return replace(clone, state=state, sequence=clone.sequence + 1, updated_time=datetime.now(UTC))


async def test_a_lease_that_is_renewed_is_nobody_elses(registry: Registry) -> None:
    await accept(registry, STUDENT)
    lease = await take(registry, seconds=SHORT)
    assert await registry.leases.renew(lease, seconds=LONG)
    claimed = await registry.leases.claim(seconds=LONG)
    assert isinstance(claimed, Pause)
    assert claimed.seconds is not None
    assert claimed.seconds > SHORT, "and the next one is told when it expires"


async def test_an_expired_lease_is_taken_with_a_larger_token_and_the_old_one_writes_nothing(registry: Registry) -> None:
    clone_id = await accept(registry, STUDENT)
    paused = await take(registry, seconds=SHORT)
    owner = await take(registry)
    assert (owner.clone.clone_id, owner.token > paused.token) == (clone_id, True)
    with pytest.raises(CloneOvertaken):
        await registry.changes.write(next_of(paused.clone), token=paused.token)
    assert not await registry.leases.renew(paused, seconds=LONG)
    await registry.changes.write(next_of(owner.clone), token=owner.token)
    assert [change.sequence for change in await registry.changes.read(clone_id, after=0)] == [1, 2]


async def test_an_expired_lease_that_nobody_took_can_still_be_renewed(registry: Registry) -> None:
    await accept(registry, STUDENT)
    lease = await take(registry, seconds=0.001)
    assert await registry.leases.renew(lease, seconds=LONG)
    await registry.changes.write(next_of(lease.clone), token=lease.token)


async def test_of_many_servers_that_see_a_lease_expire_one_gets_the_clone(clones: CloneStore) -> None:
    servers = [Registry.on(clones) for _ in range(12)]
    await accept(servers[0], STUDENT)
    await take(servers[0], seconds=0.001)

    async def insist(server: Registry) -> bool:
        """Whether this server got it, once somebody did."""
        while isinstance(claimed := await server.leases.claim(seconds=LONG), Pause):
            assert claimed.seconds is not None
            if claimed.seconds > SHORT:
                return False
            await asyncio.sleep(claimed.seconds)
        return True

    assert sum(await asyncio.gather(*map(insist, servers))) == 1


async def test_an_expired_lease_comes_before_whoever_waits(registry: Registry) -> None:
    lost = await accept(registry, "first")
    await take(registry, seconds=0.001)
    await accept(registry, "second", priority=Priority.HIGH)
    # Longer than the lease, by the store's clock and by any.
    await asyncio.sleep(0.01)
    assert (await take(registry)).clone.clone_id == lost


async def test_a_clone_that_is_put_off_is_claimed_when_its_time_has_come_and_not_before(registry: Registry) -> None:
    put_off, other = await accept(registry, "first"), await accept(registry, "second")
    journal = Journal(registry.changes, await take(registry))
    await journal.reach(CloneState.FINE_TUNING, "step 1")
    await journal.put_back("Waiting", outcome="TRAINER_UNAVAILABLE", seconds=0.2)
    assert (await take(registry)).clone.clone_id == other
    again = await take(registry)
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
        await Journal(registry.changes, await take(registry)).put_back("Waiting", outcome=outcome)
    told = (await take(registry)).clone
    assert [(attempt.number, attempt.outcome) for attempt in told.attempts] == [
        (1, "TRAINER_UNAVAILABLE"),
        (2, "MODEL_NOT_LOADED"),
    ]
    assert told.attempt == 3


async def test_who_goes_on_with_a_lost_clone_says_so_in_its_feed(registry: Registry) -> None:
    await accept(registry, STUDENT)
    journal = Journal(registry.changes, await take(registry, seconds=SHORT))
    await journal.reach(CloneState.FINE_TUNING, "step 1", fraction=0.5)
    taken_over = Journal(registry.changes, await take(registry))
    await taken_over.take_over()
    await taken_over.reach(CloneState.FINE_TUNING, "step 1")
    first, second = taken_over.clone.attempts
    assert (first.number, first.outcome) == (1, AttemptOutcome.LEASE_EXPIRED)
    assert (second.number, second.outcome, second.ended_time) == (2, "", None)
    states = [
        (one.state, one.attempt, one.progress) for one in await registry.changes.read(journal.clone.clone_id, after=2)
    ]
    assert states[0] == (CloneState.QUEUED, 2, 0)


async def test_priorities_come_first_and_acceptance_decides_within_one(registry: Registry) -> None:
    low = [await accept(registry, f"low-{n}", priority=Priority.LOW) for n in range(2)]
    normal = [await accept(registry, f"normal-{n}") for n in range(2)]
    high = [await accept(registry, f"high-{n}", priority=Priority.HIGH) for n in range(2)]
    assert [(await take(registry)).clone.clone_id for _ in range(6)] == [*high, *normal, *low]


async def test_no_stream_of_higher_priority_starves_a_lower_one(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HEAD_START_PLACES, Priority.LOW, -10)
    low = await accept(registry, "low", priority=Priority.LOW)
    others = [await accept(registry, f"student-{n}") for n in range(15)]
    taken = [(await take(registry)).clone.clone_id for _ in range(16)]
    assert taken == [*others[:9], low, *others[9:]] or taken == [*others[:10], low, *others[10:]]


async def test_a_student_has_one_clone_that_may_run_and_one_behind_it(registry: Registry) -> None:
    first = await accept(registry, STUDENT)
    with pytest.raises(CloneAlreadyRunning) as alone:
        await registry.intake.start(STUDENT, baseline())
    second = await accept(registry, STUDENT, queue_behind=True)
    with pytest.raises(CloneAlreadyRunning) as full:
        await registry.intake.start(STUDENT, baseline(), terms=BEHIND)
    assert (alone.value.facts["clone_id"], full.value.facts["clone_id"]) == (first, second)

    lease = await take(registry)
    assert lease.clone.clone_id == first
    assert isinstance(await registry.leases.claim(seconds=LONG), Pause), "they never run at the same time"
    await registry.changes.write(next_of(lease.clone, CloneState.COMPLETED), token=lease.token)
    assert (await take(registry)).clone.clone_id == second


async def test_the_clone_behind_keeps_the_place_of_its_own_acceptance(registry: Registry) -> None:
    await accept(registry, STUDENT)
    behind = await accept(registry, STUDENT, queue_behind=True)
    later = await accept(registry, "another")
    lease = await take(registry)
    await registry.changes.write(next_of(lease.clone, CloneState.FAILED), token=lease.token)
    assert [(await take(registry)).clone.clone_id for _ in range(2)] == [behind, later]


async def test_cancelling_the_first_frees_the_one_behind_and_the_other_way_round(registry: Registry) -> None:
    first = await accept(registry, STUDENT)
    second = await accept(registry, STUDENT, queue_behind=True)
    await registry.changes.cancel(second)
    third = await accept(registry, STUDENT, queue_behind=True)
    await registry.changes.cancel(first)
    assert (await take(registry)).clone.clone_id == third


async def test_a_clone_behind_another_counts_as_one_that_waits(clones: CloneStore) -> None:
    registry = Registry.on(clones, queue_limit=2)
    await accept(registry, STUDENT)
    await accept(registry, STUDENT, queue_behind=True)
    assert (await registry.listing.count()).queued == 2
    with pytest.raises(QueueFull):
        await registry.intake.start("another", baseline())


async def test_cancelling_ends_a_clone_whoever_holds_it(registry: Registry) -> None:
    clone_id = await accept(registry, STUDENT)
    lease = await take(registry)
    await registry.changes.write(next_of(lease.clone), token=lease.token)
    assert (await registry.changes.cancel(clone_id)).state is CloneState.CANCELLED
    assert not await registry.leases.renew(lease, seconds=LONG)
    running = await registry.listing.count()
    assert (running.queued, running.running) == (0, 0)
    assert (await registry.changes.cancel(clone_id)).state is CloneState.CANCELLED, "again is the same as once"


async def test_only_what_never_ran_and_nobody_holds_is_cancelled_without_asking_further(registry: Registry) -> None:
    waits = await registry.intake.start("first", baseline())
    assert await registry.changes.cancel_unstarted(waits)
    held = await registry.intake.start("second", baseline())
    lease = await take(registry)
    assert not await registry.changes.cancel_unstarted(held)
    journal = Journal(registry.changes, lease)
    await journal.reach(CloneState.FINE_TUNING, "step 1")
    await journal.put_back("Waiting", outcome=AttemptOutcome.HANDED_BACK)
    assert not await registry.changes.cancel_unstarted(journal.clone), (
        "an attempt may have been paused just before it publishes"
    )


async def test_of_a_cancel_and_the_last_change_one_wins(registry: Registry) -> None:
    for n in range(20):
        clone_id = await accept(registry, f"student-{n}")
        journal = Journal(registry.changes, await take(registry))
        failure = Failure(reason="TRAINING_DIVERGED", message="not finite")
        ended, cancelled = await asyncio.gather(
            journal.fail(failure), registry.changes.cancel(clone_id), return_exceptions=True
        )
        (*_, last) = await registry.changes.read(clone_id, after=0)
        assert isinstance(cancelled, Clone)
        assert cancelled.state is last.state
        assert isinstance(ended, CloneOvertaken) == (last.state is CloneState.CANCELLED)


async def test_every_waiting_clone_is_told_its_place_and_its_time(clones: CloneStore) -> None:
    registry = Registry.on(clones, parallel=1)
    await registry.leases.record_pace(seconds=8, responses=4)
    accepted = [await accept(registry, f"student-{n}") for n in range(3)]
    running = (await take(registry)).clone
    told = await registry.listing.with_estimates([running, *[await registry.changes.find(one) for one in accepted[1:]]])
    assert [clone.queue_position for clone in told] == [0, 1, 2]
    # 2 s a response, 4 responses a clone, and whatever comes before.
    assert [clone.seconds_left for clone in told[1:]] == [16, 24]


async def test_the_time_left_follows_what_was_measured_on_the_clone_itself(registry: Registry) -> None:
    await registry.leases.record_pace(seconds=400, responses=4)
    await accept(registry, STUDENT)
    journal = Journal(registry.changes, await take(registry))
    left = []
    for fraction in (0.0, 0.5, 1.0):
        await journal.reach(CloneState.FINE_TUNING, "step", fraction=fraction)
        left.append(journal.clone.seconds_left)
    assert left == sorted(left, reverse=True)
    assert left[0] < 400
    assert left[-1] < 40, "a clone that is nearly done after no time at all is done soon"


async def test_a_consent_that_has_expired_or_is_missing_where_it_is_wanted_is_refused(clones: CloneStore) -> None:
    now = datetime.now(UTC)
    holds = Consent(basis="parental", granted_time=now, expires_time=now + timedelta(days=1))
    expired = replace(holds, expires_time=now)
    easy, strict = Registry.on(clones), Registry.on(clones, require_consent=True)
    for registry, consent in ((easy, expired), (strict, expired), (strict, None)):
        with pytest.raises(ConsentRequired):
            await registry.intake.start(STUDENT, baseline(), terms=Terms(consent=consent))
    clone = await strict.intake.start(STUDENT, baseline(), terms=Terms(consent=holds))
    assert (await strict.changes.find(clone.clone_id)).terms.consent == holds
    await easy.intake.start("another", baseline())


async def test_erasing_leaves_nothing_of_a_student_and_everything_of_another(
    registry: Registry, clones: CloneStore
) -> None:
    for student_id in (STUDENT, "another"):
        clone = await registry.intake.start(student_id, baseline(), request_id=f"enrol-{student_id}")
        if student_id == STUDENT:
            assert await clones.erase(STUDENT) is None, "not while a clone is under way"
        await registry.changes.write(next_of(clone, CloneState.FAILED), token=NO_LEASE)
    erased = await clones.erase(STUDENT)
    assert erased is not None
    assert (erased.clones, erased.request_ids) == (1, 1)
    assert [clone.student_id for clone in (await registry.listing.list_clones()).clones] == ["another"]
    again = await clones.erase(STUDENT)
    assert again is not None
    assert (again.clones, again.request_ids) == (0, 0)
    # The request id is free again, and stands for a new clone.
    assert (await registry.intake.start(STUDENT, baseline(5), request_id=f"enrol-{STUDENT}")).sequence == 1
