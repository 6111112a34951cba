"""How long clones take and where they stand in the queue, as callers learn it."""

from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.estimates import FIRST_GUESS_SECONDS, blend_pace
from cloning_server.clones.registry import Registry
from cloning_server.running.journal import Journal
from tests.cloning_server.clones.conftest import accept, claim_next
from tests.cloning_server.conftest import SEALING, STUDENT, baseline


async def test_the_first_estimate_is_a_guess_and_later_ones_follow_what_was_measured(clones: CloneStore) -> None:
    registry = Registry.of(clones, sealing=SEALING, parallel=2)
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


async def test_every_waiting_clone_is_told_its_place_and_its_time(clones: CloneStore) -> None:
    registry = Registry.of(clones, sealing=SEALING, parallel=1)
    await registry.leases.record_pace(seconds=8, responses=4)
    accepted = [await accept(registry, f"student-{n}") for n in range(3)]
    running = (await claim_next(registry)).clone
    clones_now = await registry.listing.with_estimates(
        [running, *[await registry.changes.find(clone_id) for clone_id in accepted[1:]]]
    )
    assert [clone.queue_position for clone in clones_now] == [0, 1, 2]
    # 2 s a response, 4 responses a clone, and whatever comes before.
    assert [clone.seconds_left for clone in clones_now[1:]] == [16, 24]


async def test_the_time_left_follows_what_was_measured_on_the_clone_itself(registry: Registry) -> None:
    await registry.leases.record_pace(seconds=400, responses=4)
    await accept(registry, STUDENT)
    journal = Journal(registry.changes, await claim_next(registry))
    seconds_left = []
    for fraction in (0.0, 0.5, 1.0):
        await journal.reach(CloneState.FINE_TUNING, "step", fraction=fraction)
        seconds_left.append(journal.clone.seconds_left)
    assert seconds_left == sorted(seconds_left, reverse=True)
    assert seconds_left[0] < 400
    assert seconds_left[-1] < 40, "a clone that is nearly done after no time at all is done soon"
