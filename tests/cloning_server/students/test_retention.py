"""Students whose time is over are erased, and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Self

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from redis import exceptions
from redis.asyncio import Connection
from structlog.testing import capture_logs

from cloning_server.clone import CloneState
from cloning_server.clones.changes import CloneChanges
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.running.brain import GrpcBrain
from cloning_server.students.erasure import Erasure
from cloning_server.students.housekeeping import ALWAYS_ERASED, MARKS_LAST, Housekeeping
from cloning_server.students.residues import ResidueTerms
from mesh.adapters.notices import announce_deletion
from mesh.adapters.store import AdapterStore
from mesh.alerts.alert_store import AlertStore
from mesh.errors import CloneNotFound
from mesh.rpc.channels import open_channel
from testing.waiting import until as until_true
from tests.cloning_server.conftest import SEALING, STUDENT, Cloning, baseline, order, raised, watch_all
from tests.cloning_server.students.calls import clone, models_of

RETENTION = timedelta(days=30)
STOPPED = "retention is stopped: it would erase 11 of 11 students"


@pytest.fixture
async def housekeeping(
    cloning: Cloning, clones: CloneStore, upkeep_store: UpkeepStore, adapters: AdapterStore
) -> AsyncIterator[Housekeeping]:
    """Housekeeping that only works when it is told to."""
    tenant = cloning.settings.tenant
    async with open_channel(cloning.brain.address) as channel:
        erasure = Erasure(
            upkeep_store,
            changes=CloneChanges(clones),
            adapters=adapters,
            alerts=AlertStore(cloning.redis, tenant=tenant),
            brain=GrpcBrain(channel),
            inform_brains=partial(announce_deletion, cloning.redis, tenant=tenant),
            trust_seconds=60,
            residue_terms=ResidueTerms(
                file_rewrite_seconds=60, reply_cache_seconds=60, trainer_seconds=60, has_cohorts=False
            ),
            file_problems=tuple,
        )
        yield Housekeeping(
            upkeep_store,
            adapters=adapters,
            erasure=erasure,
            every_seconds=60,
            keep_changes=timedelta(days=1),
            retention=RETENTION,
            largest_share=0.05,
        )


async def let_time_pass(cloning: Cloning, student_id: str, *, days: int = 1) -> None:
    """Has the student's latest clone accepted so many days longer ago than students are kept."""
    long_ago = datetime.now(UTC) - RETENTION - timedelta(days=days)
    students = f"{{aivo:{cloning.settings.tenant}}}:students"
    await cloning.redis.zadd(students, {student_id: int(long_ago.timestamp() * 1000)})


async def students_in(cloning: Cloning) -> set[str]:
    """The ids of the students who have not been erased."""
    student_ids = await cloning.redis.zrange(f"{{aivo:{cloning.settings.tenant}}}:students", 0, -1)
    return {str(student_id) for student_id in student_ids}


async def test_a_student_whose_time_is_over_is_erased_and_one_who_came_back_is_not(
    cloning: Cloning, housekeeping: Housekeeping
) -> None:
    async with cloning.serve() as stub:
        old = await clone(stub, "old")
        await clone(stub, "new")
        await let_time_pass(cloning, "old")
        await housekeeping.clean_up()
        assert (await models_of(stub, "old")).active_version == 1, "the first turn only marks"
        await housekeeping.clean_up()
        with raised() as failure:
            await stub.GetClone(pb.GetCloneRequest(clone_id=old))
        assert isinstance(failure.error, CloneNotFound)
        assert (await models_of(stub, "old")).active_version == 0
        assert (await models_of(stub, "new")).active_version == 1


async def test_a_student_who_can_not_be_erased_keeps_nobody_else(
    cloning: Cloning, clones: CloneStore, housekeeping: Housekeeping
) -> None:
    async with cloning.serve() as stub:
        for student_id in ("broken", "old"):
            await clone(stub, student_id)
    # The broken student comes first.
    await let_time_pass(cloning, "broken", days=2)
    await let_time_pass(cloning, "old")
    lane = f"{{aivo:{cloning.settings.tenant}}}:lane:broken"
    await cloning.redis.set(lane, "not a list")
    await housekeeping.clean_up()
    with capture_logs() as events:
        await housekeeping.clean_up()
    failures = [(event["event"], event["student_id"]) for event in events if event["log_level"] == "error"]
    assert failures == [("retention_failed", "broken")]
    assert "housekeeping_done" in {event["event"] for event in events}
    assert await students_in(cloning) == {"broken"}
    await cloning.redis.delete(lane)
    await housekeeping.clean_up()
    assert await students_in(cloning) == set()


@pytest.mark.parametrize("place", ["mark_idle_students", "is_idle"])
async def test_a_student_who_is_cloned_again_while_their_erasure_is_due_keeps_the_clone(
    place: str,
    cloning: Cloning,
    upkeep_store: UpkeepStore,
    housekeeping: Housekeeping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cloning.serve() as stub:
        await clone(stub)
        await let_time_pass(cloning, STUDENT)
        gate = cloning.trainer.gates[CloneState.FINE_TUNING]
        gate.shut()
        await housekeeping.clean_up()
        read = getattr(upkeep_store, place)
        clone_ids: list[str] = []

        async def read_before_the_student_returns(*args: object, **options: object) -> object:
            answer = await read(*args, **options)
            clone_ids.append((await stub.StartClone(order())).clone_id)
            return answer

        monkeypatch.setattr(upkeep_store, place, read_before_the_student_returns)
        await housekeeping.clean_up()

        gate.open()
        (clone_id,) = clone_ids
        assert (await watch_all(stub, clone_id))[-1].status == "completed"
        assert (await models_of(stub)).models[0].clone_id == clone_id


async def test_a_student_who_came_back_after_a_mark_is_marked_anew(
    cloning: Cloning, housekeeping: Housekeeping
) -> None:
    await let_time_pass(cloning, "ada")
    await housekeeping.clean_up()
    await let_time_pass(cloning, "ada", days=-1)
    await housekeeping.clean_up()
    await let_time_pass(cloning, "ada")
    await housekeeping.clean_up()
    assert await students_in(cloning) == {"ada"}
    await housekeeping.clean_up()
    assert await students_in(cloning) == set()


async def test_a_mark_does_not_outlive_the_acceptance_of_a_clone_however_late_the_next_turn_is(
    cloning: Cloning, clones: CloneStore, housekeeping: Housekeeping
) -> None:
    await let_time_pass(cloning, "ada")
    await housekeeping.clean_up()
    await Registry.of(clones, sealing=SEALING).intake.start("ada", baseline())
    await let_time_pass(cloning, "ada")
    await housekeeping.clean_up()
    assert await students_in(cloning) == {"ada"}


async def test_a_mark_counts_only_if_a_recent_turn_made_or_confirmed_it(
    cloning: Cloning, upkeep_store: UpkeepStore, housekeeping: Housekeeping
) -> None:
    marks = f"{{aivo:{cloning.settings.tenant}}}:due"

    async def have_marks_lapsed() -> bool:
        return not await cloning.redis.exists(marks)

    await let_time_pass(cloning, "ada")
    await upkeep_store.mark_idle_students(idle=RETENTION, limit=9, marks_last=timedelta(milliseconds=1))
    await until_true(have_marks_lapsed, seconds=10)
    await housekeeping.clean_up()
    assert await students_in(cloning) == {"ada"}
    assert 0 < await cloning.redis.ttl(marks) <= MARKS_LAST.total_seconds()
    await housekeeping.clean_up()
    assert await students_in(cloning) == set()


async def test_a_mark_does_not_count_for_another_retention_time(cloning: Cloning, upkeep_store: UpkeepStore) -> None:
    async def due_after(days: int) -> int:
        marked = await upkeep_store.mark_idle_students(idle=timedelta(days=days), limit=9, marks_last=MARKS_LAST)
        return marked.due

    await let_time_pass(cloning, "ada")
    assert [await due_after(days) for days in (2, 2, 20, 2, 2)] == [0, 1, 0, 0, 1]


async def test_a_turn_whose_answer_is_lost_does_not_erase_whom_it_has_marked(
    cloning: Cloning, upkeep_store: UpkeepStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await let_time_pass(cloning, "ada")
    run = Connection.read_response
    losses = 1

    async def lose_one(connection: Connection, *args: Any, **kwargs: Any) -> object:
        nonlocal losses
        answer = await run(connection, *args, **kwargs)
        if isinstance(answer, list) and losses:
            losses -= 1
            raise exceptions.ConnectionError
        return answer

    monkeypatch.setattr(Connection, "read_response", lose_one)
    marked = await upkeep_store.mark_idle_students(idle=RETENTION, limit=9, marks_last=MARKS_LAST)
    assert (losses, marked.due) == (0, 0)
    due = await upkeep_store.mark_idle_students(idle=RETENTION, limit=9, marks_last=MARKS_LAST)
    assert due.student_ids == ("ada",)


async def test_a_server_whose_clock_is_a_year_ahead_erases_nobody(
    cloning: Cloning, housekeeping: Housekeeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NextYear(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(days=366)

    for module in ("students.housekeeping", "clones.upkeep_store"):
        monkeypatch.setattr(f"cloning_server.{module}.datetime", NextYear)
    async with cloning.serve() as stub:
        await clone(stub)
        for _ in range(3):
            await housekeeping.clean_up()
        assert (await models_of(stub)).active_version == 1


async def test_a_turn_that_would_erase_many_erases_nobody_and_says_so(cloning: Cloning) -> None:
    students = {f"student-{number}" for number in range(ALWAYS_ERASED + 1)}
    for student_id in students:
        await let_time_pass(cloning, student_id)
    cloning.set(retention_days=RETENTION.days, housekeeping_seconds=0.05)

    with capture_logs() as events:
        async with cloning.serve() as stub:

            async def is_stopped() -> bool:
                health = await stub.GetHealth(pb.GetHealthRequest())
                return (health.status, health.reason) == ("degraded", STOPPED)

            await until_true(is_stopped, seconds=60)
    stops = [event for event in events if event["event"] == "retention_stopped"]
    assert (stops[0]["log_level"], stops[0]["due"], stops[0]["students"]) == ("error", 11, 11)
    assert await students_in(cloning) == students

    cloning.set(retention_largest_share=1)
    async with cloning.serve() as stub:

        async def is_done() -> bool:
            health = await stub.GetHealth(pb.GetHealthRequest())
            return (health.status, await students_in(cloning)) == ("healthy", set())

        await until_true(is_done, seconds=60)


async def test_of_many_servers_one_keeps_house_at_a_time(upkeep_store: UpkeepStore) -> None:
    turns = await asyncio.gather(*(upkeep_store.take_turn(seconds=60) for _ in range(8)))
    assert sum(turns) == 1
