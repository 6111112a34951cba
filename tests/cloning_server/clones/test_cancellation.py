"""Cancelling a clone, wherever it is: it ends, its training stops, and nothing of it is ever published."""

import asyncio

import grpc
import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb

from cloning_server.clone import CloneState, Terms
from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.leases import CloneLease
from cloning_server.clones.registry import Registry
from cloning_server.running.journal import Journal
from mesh.adapters.store import CloneVoided
from mesh.errors import AdapterStoreUnavailable, CloneFinal, CloneNotFound, NoTrainableExamples
from testing.parts.part import free_ports
from testing.scripted.trainer import recipe_for, weights_for
from tests.cloning_server.conftest import (
    SEALING,
    STUDENT,
    Cloning,
    CloningStub,
    baseline,
    raised,
    start_clone,
    until,
    watch_all,
)


async def cancel(stub: CloningStub, clone_id: str) -> pb.CancelCloneResponse:
    return await stub.CancelClone(pb.CancelCloneRequest(clone_id=clone_id))


async def assert_nothing_can_be_published(cloning: Cloning, clone_id: str) -> None:
    """Also not by a training that went on unnoticed."""
    plan = next(plan for plan in cloning.trainer.plans if plan.clone_id == clone_id)
    with pytest.raises(CloneVoided):
        await cloning.adapters.stage(STUDENT, weights_for(plan), recipe=recipe_for(plan))
    assert await cloning.adapters.list_versions(STUDENT) == []
    assert await cloning.adapters.resolve_active(STUDENT) is None


async def test_a_clone_that_waits_is_cancelled_at_once_and_never_runs(cloning: Cloning, stub: CloningStub) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    first, waits = await start_clone(stub, "first"), await start_clone(stub)
    await gate.reached.wait()
    response = await cancel(stub, waits)
    assert (response.clone_id, response.student_id, response.status, response.state) == (
        waits,
        STUDENT,
        "cancelled",
        pb.CLONE_STATE_CANCELLED,
    )
    assert [change.status for change in await watch_all(stub, waits)] == ["queued", "cancelled"]
    gate.open()
    await watch_all(stub, first)
    assert [plan.clone_id for plan in cloning.trainer.plans] == [first]


async def test_without_the_adapter_store_a_clone_that_waits_is_cancelled_and_one_that_runs_goes_on(
    cloning: Cloning, clones: CloneStore
) -> None:
    registry = Registry.of(clones, sealing=SEALING)
    runs = (await registry.intake.start(STUDENT, baseline())).clone_id
    lease = await registry.leases.claim(seconds=60)
    assert isinstance(lease, CloneLease)
    await Journal(registry.changes, lease).reach(CloneState.FINE_TUNING, "step 1")
    waits = (await registry.intake.start(STUDENT, baseline(), terms=Terms(queue_behind=True))).clone_id
    (port,) = free_ports(1)
    cloning.set(s3_endpoint_url=f"http://127.0.0.1:{port}", s3_connect_timeout_seconds=0.2)
    async with cloning.serve() as stub:
        assert (await cancel(stub, waits)).status == "cancelled"
        with raised() as failure:
            await cancel(stub, runs)
        assert isinstance(failure.error, AdapterStoreUnavailable)
        assert (await stub.GetClone(pb.GetCloneRequest(clone_id=runs))).status == "fine_tuning"


@pytest.mark.parametrize("state", [CloneState.LOADING_BASE_MODEL, CloneState.FINE_TUNING, CloneState.OPTIMIZING])
async def test_a_training_is_stopped_whichever_server_is_asked(cloning: Cloning, state: CloneState) -> None:
    gate = cloning.trainer.gates[state]
    gate.shut()
    async with cloning.serve() as owner:
        clone_id = await start_clone(owner)
        await gate.reached.wait()
        async with cloning.serve() as other:
            watching = asyncio.create_task(watch_all(owner, clone_id))
            await cancel(other, clone_id)
            await cloning.trainer.cut_off.wait()
            assert cloning.trainer.stopped_clones == [clone_id]
            assert (await watching)[-1].status == "cancelled"
            attempts = (await other.GetClone(pb.GetCloneRequest(clone_id=clone_id))).attempts
            # One at the very first gate has not told of its attempt yet.
            assert [attempt.outcome for attempt in attempts] in (["cancelled"], [])
            await assert_nothing_can_be_published(cloning, clone_id)
            # The student is free, and the slot too.
            gate.open()
            assert (await watch_all(other, await start_clone(other)))[-1].status == "completed"


async def test_cancelling_again_is_the_same_as_once(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    clone_id = await start_clone(stub)
    await cloning.trainer.gates[CloneState.FINE_TUNING].reached.wait()
    responses = await asyncio.gather(*(cancel(stub, clone_id) for _ in range(5)))
    assert all(response == responses[0] for response in responses)
    assert await cancel(stub, clone_id) == responses[0]
    assert len([change for change in await watch_all(stub, clone_id) if change.status == "cancelled"]) == 1


async def test_what_has_ended_otherwise_is_refused_and_stays_as_it_is(cloning: Cloning, stub: CloningStub) -> None:
    completed = await start_clone(stub, "first")
    await watch_all(stub, completed)
    cloning.trainer.faults.append(NoTrainableExamples(responses=3, usable=1))
    failed = await start_clone(stub, "second")
    await watch_all(stub, failed)
    for clone_id, status in ((completed, "completed"), (failed, "failed")):
        with raised() as failure:
            await cancel(stub, clone_id)
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert isinstance(failure.error, CloneFinal)
        assert failure.error.facts == {"clone_id": clone_id, "state": status}
        assert (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).status == status


async def test_from_the_commit_on_it_is_too_late_and_the_clone_completes(cloning: Cloning, stub: CloningStub) -> None:
    cloning.brain.hold.clear()
    clone_id = await start_clone(stub)
    await until(stub, clone_id, "deploying")
    with raised() as failure:
        await cancel(stub, clone_id)
    assert isinstance(failure.error, CloneFinal)
    cloning.brain.hold.set()
    last = (await watch_all(stub, clone_id))[-1]
    assert (last.status, last.attempt, last.model.active) == ("completed", 1, True)


async def test_a_clone_whose_server_is_dead_is_cancelled_all_the_same(cloning: Cloning, clones: CloneStore) -> None:
    registry = Registry.of(clones, sealing=SEALING)
    clone_id = (await registry.intake.start(STUDENT, baseline())).clone_id
    dead = await registry.leases.claim(seconds=600)
    assert isinstance(dead, CloneLease)
    await Journal(registry.changes, dead).reach(CloneState.FINE_TUNING, "step 1")
    async with cloning.serve() as stub:
        await cancel(stub, clone_id)
        last = (await watch_all(stub, clone_id))[-1]
        assert (last.status, last.sequence) == ("cancelled", 3)
        assert (await watch_all(stub, await start_clone(stub)))[-1].status == "completed"


async def test_a_cancel_that_broke_off_in_the_middle_is_finished_by_the_one_who_runs_the_clone(
    cloning: Cloning, stub: CloningStub
) -> None:
    gate = cloning.trainer.gates[CloneState.OPTIMIZING]
    gate.shut()
    clone_id = await start_clone(stub)
    await gate.reached.wait()
    assert await cloning.adapters.void(clone_id) is None
    gate.open()
    assert (await watch_all(stub, clone_id))[-1].status == "cancelled"
    await assert_nothing_can_be_published(cloning, clone_id)


async def test_of_cancels_at_any_moment_each_clone_ends_cancelled_or_with_its_version(
    cloning: Cloning, stub: CloningStub
) -> None:
    for moment in range(0, 40, 4):
        student_id = f"student-{moment}"
        clone_id = await start_clone(stub, student_id)
        changes = aiter(stub.WatchClone(pb.WatchCloneRequest(clone_id=clone_id, after_sequence=0)))
        async for change in changes:
            if change.sequence > moment:
                break
        (result,) = await asyncio.gather(cancel(stub, clone_id), return_exceptions=True)
        cancelled = isinstance(result, pb.CancelCloneResponse)
        last = (await watch_all(stub, clone_id))[-1]
        versions = await cloning.adapters.list_versions(student_id)
        assert (last.status, len(versions)) == (("cancelled", 0) if cancelled else ("completed", 1))


async def test_an_unknown_clone_cannot_be_cancelled(stub: CloningStub) -> None:
    with raised() as failure:
        await cancel(stub, "clone_unknown")
    assert isinstance(failure.error, CloneNotFound)
