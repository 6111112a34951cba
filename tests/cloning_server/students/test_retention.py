"""Students whose time is over are erased, and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from structlog.testing import capture_logs

from cloning_server.clone import CloneState
from cloning_server.clones.clone_store import CloneStore
from cloning_server.running.brain import GrpcBrain
from cloning_server.students.erasure import Erasure
from cloning_server.students.housekeeping import Housekeeping
from mesh.adapters.notices import announce_deletion
from mesh.adapters.store import AdapterStore
from mesh.alerts.alert_store import AlertStore
from mesh.errors import CloneNotFound
from mesh.rpc.channels import open_channel
from tests.cloning_server.conftest import STUDENT, Cloning, order, raised, watch_all
from tests.cloning_server.students.calls import clone, models_of

RETENTION = timedelta(days=30)


@pytest.fixture
async def housekeeping(cloning: Cloning, clones: CloneStore, adapters: AdapterStore) -> AsyncIterator[Housekeeping]:
    """Housekeeping that only works when it is told to."""
    tenant = cloning.settings.tenant
    async with open_channel(cloning.brain.address) as channel:
        erasure = Erasure(
            clones,
            adapters=adapters,
            alerts=AlertStore(cloning.redis, tenant=tenant),
            brain=GrpcBrain(channel),
            inform_brains=partial(announce_deletion, cloning.redis, tenant=tenant),
            trust_seconds=60,
        )
        yield Housekeeping(clones, adapters=adapters, erasure=erasure, every_seconds=60, retention=RETENTION)


async def let_time_pass(cloning: Cloning, student_id: str, *, days: int = 1) -> None:
    """Has the student's latest clone accepted so many days longer ago than students are kept."""
    long_ago = datetime.now(UTC) - RETENTION - timedelta(days=days)
    students = f"{{aivo:{cloning.settings.tenant}}}:students"
    await cloning.redis.zadd(students, {student_id: long_ago.timestamp() * 1000})


async def test_a_student_whose_time_is_over_is_erased_and_one_who_came_back_is_not(
    cloning: Cloning, housekeeping: Housekeeping
) -> None:
    async with cloning.serve() as stub:
        old = await clone(stub, "old")
        await clone(stub, "new")
        await let_time_pass(cloning, "old")
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
    with capture_logs() as events:
        await housekeeping.clean_up()
    failures = [(event["event"], event["student_id"]) for event in events if event["log_level"] == "error"]
    assert failures == [("retention_failed", "broken")]
    assert "housekeeping_done" in {event["event"] for event in events}
    assert await clones.list_idle_students(before=datetime.now(UTC), limit=9) == ["broken"]
    await cloning.redis.delete(lane)
    await housekeeping.clean_up()
    assert await clones.list_idle_students(before=datetime.now(UTC), limit=9) == []


@pytest.mark.parametrize("place", ["list_idle_students", "is_idle"])
async def test_a_student_who_is_cloned_again_while_their_erasure_is_due_keeps_the_clone(
    place: str, cloning: Cloning, clones: CloneStore, housekeeping: Housekeeping, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cloning.serve() as stub:
        await clone(stub)
        await let_time_pass(cloning, STUDENT)
        gate = cloning.trainer.gates[CloneState.FINE_TUNING]
        gate.shut()
        read = getattr(clones, place)
        clone_ids: list[str] = []

        async def read_before_the_student_returns(*args: object, **options: object) -> object:
            answer = await read(*args, **options)
            clone_ids.append((await stub.StartClone(order())).clone_id)
            return answer

        monkeypatch.setattr(clones, place, read_before_the_student_returns)
        await housekeeping.clean_up()

        gate.open()
        (clone_id,) = clone_ids
        assert (await watch_all(stub, clone_id))[-1].status == "completed"
        assert (await models_of(stub)).models[0].clone_id == clone_id


async def test_of_many_servers_one_keeps_house_at_a_time(clones: CloneStore) -> None:
    turns = await asyncio.gather(*(clones.take_turn(seconds=60) for _ in range(8)))
    assert sum(turns) == 1
