"""The registry on a real Valkey: what many callers at once can and can't do."""

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from cloning_server.clone import Clone, CloneState
from cloning_server.clones.changes import CloneOvertaken
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.estimates import FIRST_GUESS_SECONDS, blend_pace
from cloning_server.clones.intake import request_digest
from cloning_server.clones.leases import CloneLease, Pause
from cloning_server.clones.records import NO_LEASE
from cloning_server.clones.redis import open_redis
from cloning_server.clones.registry import Registry
from cloning_server.settings import CloningSettings
from mesh.errors import (
    CloneAlreadyRunning,
    CloneNotFound,
    CloneStoreUnavailable,
    InvalidField,
    QueueFull,
    RequestIdReused,
)
from testing.parts.part import free_ports
from tests.cloning_server.conftest import STUDENT, baseline


@pytest.fixture
def registry(clones: CloneStore) -> Registry:
    return Registry.on(clones, queue_limit=100)


async def take(registry: Registry, *, seconds: float = 60.0) -> CloneLease:
    """Claims the clone whose turn it is."""
    claimed = await registry.leases.claim(seconds=seconds)
    assert isinstance(claimed, CloneLease)
    return claimed


def moved(clone: Clone, state: CloneState, *, progress: int = 0) -> Clone:
    return replace(clone, state=state, sequence=clone.sequence + 1, progress=progress, updated_time=datetime.now(UTC))


async def test_the_same_request_on_many_servers_at_once_makes_one_clone(clones: CloneStore) -> None:
    servers = [Registry.on(clones) for _ in range(12)]
    made = await asyncio.gather(*(one.intake.start(STUDENT, baseline(), request_id="enrol-17") for one in servers))
    assert len({clone.clone_id for clone in made}) == 1
    assert all(clone == made[0] for clone in made), "every caller gets the first answer"


async def test_the_same_request_is_answered_the_same_after_the_clone_went_on(registry: Registry) -> None:
    first = await registry.intake.start(STUDENT, baseline(), request_id="enrol-17")
    await registry.changes.write(moved(first, CloneState.COMPLETED, progress=100), token=NO_LEASE)
    assert await registry.intake.start(STUDENT, baseline(), request_id="enrol-17") == first


async def test_a_request_id_with_another_body_is_refused_and_names_the_clone(registry: Registry) -> None:
    first = await registry.intake.start(STUDENT, baseline(4), request_id="enrol-17")
    with pytest.raises(RequestIdReused) as caught:
        await registry.intake.start(STUDENT, baseline(5), request_id="enrol-17")
    assert caught.value.facts == {"request_id": "enrol-17", "clone_id": first.clone_id}


async def test_of_many_clones_of_one_student_at_once_one_starts(registry: Registry) -> None:
    results = await asyncio.gather(
        *(registry.intake.start(STUDENT, baseline()) for _ in range(12)), return_exceptions=True
    )
    (made,) = [result for result in results if isinstance(result, Clone)]
    others = [result for result in results if isinstance(result, CloneAlreadyRunning)]
    assert len(others) == 11
    assert {error.facts["clone_id"] for error in others} == {made.clone_id}


async def test_a_student_may_start_again_after_the_final_state(registry: Registry) -> None:
    first = await registry.intake.start(STUDENT, baseline())
    await registry.changes.write(moved(first, CloneState.FAILED), token=NO_LEASE)
    assert (await registry.intake.start(STUDENT, baseline())).clone_id != first.clone_id


async def test_no_more_clones_wait_than_the_queue_may_hold(clones: CloneStore) -> None:
    registry = Registry.on(clones, queue_limit=5)
    results = await asyncio.gather(
        *(registry.intake.start(f"student-{n}", baseline()) for n in range(20)), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 15
    assert all(error.facts == {"limit": 5} and error.retry_seconds > 0 for error in refused)
    assert (await registry.listing.count()).queued == 5
    # One that runs leaves a place.
    await take(registry)
    await registry.intake.start("student-late", baseline())


async def test_clones_are_claimed_once_each_in_the_order_of_acceptance(registry: Registry) -> None:
    accepted = [(await registry.intake.start(f"student-{n}", baseline())).clone_id for n in range(9)]
    assert [(await take(registry)).clone.clone_id for _ in range(9)] == accepted
    assert isinstance(await registry.leases.claim(seconds=60), Pause)


async def test_many_who_claim_at_once_get_a_clone_each(registry: Registry) -> None:
    accepted = {(await registry.intake.start(f"student-{n}", baseline())).clone_id for n in range(10)}
    taken = await asyncio.gather(*(take(registry) for _ in range(10)))
    assert sorted(lease.clone.clone_id for lease in taken) == sorted(accepted)
    assert len({lease.token for lease in taken}) == 10, "no two leases have one token"


async def test_a_clone_that_is_queued_again_gets_its_old_place(registry: Registry) -> None:
    first, second = [await registry.intake.start(f"student-{n}", baseline()) for n in range(2)]
    lease = await take(registry)
    assert lease.clone == first
    await registry.changes.write(moved(first, CloneState.QUEUED), token=lease.token, delay_seconds=0)
    assert [(await take(registry)).clone.clone_id for _ in range(2)] == [first.clone_id, second.clone_id]


async def test_a_change_after_somebody_elses_is_refused_and_leaves_no_trace(registry: Registry) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    await registry.changes.write(moved(clone, CloneState.FINE_TUNING, progress=50), token=NO_LEASE)
    with pytest.raises(CloneOvertaken):
        await registry.changes.write(moved(clone, CloneState.FAILED), token=NO_LEASE)
    assert [change.state for change in await registry.changes.read(clone.clone_id, after=0)] == [
        CloneState.QUEUED,
        CloneState.FINE_TUNING,
    ]
    assert await registry.leases.read_baseline(clone.clone_id) == baseline()


async def test_of_many_writers_of_one_change_one_wins(registry: Registry) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    results = await asyncio.gather(
        *(registry.changes.write(moved(clone, CloneState.FINE_TUNING, progress=n), token=NO_LEASE) for n in range(20)),
        return_exceptions=True,
    )
    assert results.count(None) == 1
    assert len(await registry.changes.read(clone.clone_id, after=1)) == 1


async def test_a_change_that_is_sent_again_is_written_once(registry: Registry) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    change = moved(clone, CloneState.COMPLETED, progress=100)
    await registry.changes.write(change, token=NO_LEASE)
    await registry.changes.write(change, token=NO_LEASE)
    assert await registry.changes.read(clone.clone_id, after=1) == [change]


@pytest.mark.parametrize("state", [CloneState.COMPLETED, CloneState.FAILED, CloneState.CANCELLED])
async def test_the_baseline_is_gone_as_soon_as_the_clone_is_final(registry: Registry, state: CloneState) -> None:
    clone = await registry.intake.start(STUDENT, baseline())
    assert await registry.leases.read_baseline(clone.clone_id) == baseline()
    await registry.changes.write(moved(clone, state), token=NO_LEASE)
    with pytest.raises(CloneOvertaken):
        await registry.leases.read_baseline(clone.clone_id)


async def test_a_clone_that_ended_leaves_nothing_but_its_feed_and_its_names(
    registry: Registry, redis: Redis, settings: CloningSettings
) -> None:
    clone = await registry.intake.start(STUDENT, baseline(), request_id="enrol-17")
    lease = await take(registry)
    await registry.changes.write(moved(clone, CloneState.COMPLETED), token=lease.token)
    keys = {key.partition("}:")[2] async for key in redis.scan_iter(f"*{settings.tenant}*")}
    of_the_student = {f"feed:{clone.clone_id}", "request:enrol-17", f"clones:{STUDENT}", f"requests:{STUDENT}"}
    assert keys == of_the_student | {"clones", "students", "counter", "lease_counter"}


async def test_pages_hold_every_clone_once_newest_first_while_more_are_accepted(registry: Registry) -> None:
    accepted = [(await registry.intake.start(f"student-{n}", baseline())).clone_id for n in range(7)]
    listed, token = [], ""
    for late in range(4):
        page = await registry.listing.list_clones(size=2, token=token)
        listed += [clone.clone_id for clone in page.clones]
        token = page.next_token
        await registry.intake.start(f"student-late-{late}", baseline())
    assert listed == accepted[::-1]
    assert token == ""


async def test_a_list_of_one_student_holds_only_theirs(registry: Registry) -> None:
    mine = []
    for _ in range(3):
        clone = await registry.intake.start(STUDENT, baseline())
        await registry.changes.write(moved(clone, CloneState.FAILED), token=NO_LEASE)
        mine.append(clone.clone_id)
    await registry.intake.start("another", baseline())
    page = await registry.listing.list_clones(student_id=STUDENT, size=3)
    assert [clone.clone_id for clone in page.clones] == mine[::-1]
    assert page.next_token == "", "a last page that is full has no page after it"


async def test_the_token_of_another_list_is_refused(registry: Registry) -> None:
    for n in range(3):
        await registry.intake.start(f"student-{n}", baseline())
    token = (await registry.listing.list_clones(size=1)).next_token
    with pytest.raises(InvalidField) as caught:
        await registry.listing.list_clones(student_id="student-0", token=token)
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


@given(token=st.text(min_size=1, max_size=40))
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_junk_is_taken_for_a_page_token(token: str) -> None:
    registry = Registry.on(CloneStore(open_redis("redis://127.0.0.1:1/0")))
    with pytest.raises(InvalidField):
        # Refused before anything is asked of the store, which is not there.
        asyncio.run(registry.listing.list_clones(token=token))


async def test_the_first_estimate_is_a_guess_and_later_ones_follow_what_was_measured(clones: CloneStore) -> None:
    registry = Registry.on(clones, parallel=2)
    first = await registry.intake.start("student-0", baseline(4))
    assert first.estimated_seconds == FIRST_GUESS_SECONDS
    await registry.leases.record_pace(seconds=8, responses=4)
    second = await registry.intake.start("student-1", baseline(10))
    # 2 s a response: its own 10, and 4 before it on two trainers.
    assert second.estimated_seconds == 2 * 10 + 2 * 4 / 2
    assert (await registry.changes.find(second.clone_id)).estimated_seconds == second.estimated_seconds


def test_the_pace_follows_a_change_within_a_few_clones() -> None:
    pace_now: float | None = None
    for _ in range(10):
        pace_now = blend_pace(pace_now, seconds=100, responses=100)
    for _ in range(5):
        pace_now = blend_pace(pace_now, seconds=300, responses=100)
    assert pace_now is not None
    assert 2.5 < pace_now < 3


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


async def test_an_unknown_clone_is_not_found(registry: Registry) -> None:
    with pytest.raises(CloneNotFound):
        await registry.changes.find("clone_unknown")


async def test_a_store_that_is_not_there_is_told_as_such() -> None:
    (port,) = free_ports(1)
    async with open_redis(f"redis://127.0.0.1:{port}/0") as redis:
        registry = Registry.on(CloneStore(redis))
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


def test_the_digest_is_of_what_is_asked_for_and_nothing_else() -> None:
    digests = {request_digest(STUDENT, baseline(n)) for n in range(2, 10)} | {request_digest("another", baseline(2))}
    assert len(digests) == 9
    shuffled = list(baseline(9).responses)
    random.Random(1).shuffle(shuffled)
    assert request_digest(STUDENT, baseline(9)) == request_digest(STUDENT, replace(baseline(9)))
    assert request_digest(STUDENT, replace(baseline(9), responses=tuple(shuffled))) not in digests
