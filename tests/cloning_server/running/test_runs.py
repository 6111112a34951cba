"""A clone from its acceptance to its end, as callers see it, when nothing goes wrong."""

import asyncio
import dataclasses
import itertools

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb

from cloning_server.clone import CloneState
from tests.cloning_server.conftest import (
    NAME,
    STUDENT,
    Cloning,
    CloningStub,
    order,
    start_clone,
    until,
    watch_all,
)
from tests.cloning_server.running.conftest import STATUSES, run_clone, statuses_of


async def test_a_clone_goes_through_every_state_in_order_and_its_model_answers(
    cloning: Cloning, stub: CloningStub
) -> None:
    changes = await watch_all(stub, await start_clone(stub))
    assert statuses_of(changes) == STATUSES
    last = changes[-1]
    assert (last.progress, last.attempt, last.model.version, last.model.active) == (100, 1, 1, True)
    # To probe it before it is made active, and once more to have the pointer read.
    assert cloning.brain.warmed_versions == [(STUDENT, 1)] * 2
    active = await cloning.adapters.resolve_active(STUDENT)
    assert active is not None
    assert active.sha256 == last.model.sha256


async def test_the_model_is_told_from_deploying_on_and_not_before(stub: CloningStub) -> None:
    changes = await watch_all(stub, await start_clone(stub))
    statuses = {change.status for change in changes if change.HasField("model")}
    assert statuses == {"deploying", "completed"}


async def test_progress_never_goes_back_and_every_change_moves_something(stub: CloningStub) -> None:
    changes = await watch_all(stub, await start_clone(stub))
    for before, after in itertools.pairwise(changes):
        assert after.progress >= before.progress
        assert (after.status, after.progress) != (before.status, before.progress)
    assert len([change for change in changes if change.status == "fine_tuning"]) > 5, "steps are told as they happen"


async def test_the_plan_holds_the_baseline_and_the_epochs_of_the_settings(cloning: Cloning) -> None:
    cloning.set(clone_epochs=7)
    async with cloning.serve() as stub:
        await watch_all(stub, await start_clone(stub))
    (plan,) = cloning.trainer.plans
    assert plan.epochs == 7
    assert [response.question for response in plan.baseline.responses][:2] == ["What is 0 + 0?", "What is 1 + 1?"]


async def test_clones_run_one_after_another_in_the_order_of_acceptance(cloning: Cloning, stub: CloningStub) -> None:
    accepted = [await start_clone(stub, f"student-{n}") for n in range(6)]
    await asyncio.gather(*(watch_all(stub, clone_id) for clone_id in accepted))
    assert [plan.clone_id for plan in cloning.trainer.plans] == accepted


async def test_as_many_clones_run_at_once_as_the_settings_allow(cloning: Cloning) -> None:
    cloning.set(parallel_clones=3)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        accepted = [await start_clone(stub, f"student-{n}") for n in range(5)]
        await asyncio.gather(*(until(stub, clone_id, "creating_adapter") for clone_id in accepted[:3]))
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert (health.running_clones, health.queued_clones) == (3, 2)
        gate.open()
        assert [(await watch_all(stub, clone_id))[-1].status for clone_id in accepted] == ["completed"] * 5


async def test_a_second_clone_makes_a_second_version_which_answers(cloning: Cloning, stub: CloningStub) -> None:
    first, second = await run_clone(stub), await run_clone(stub)
    models = await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))
    assert [(model.version, model.active, model.clone_id) for model in models.models] == [
        (2, True, second),
        (1, False, first),
    ]
    assert models.active_version == 2
    # The clone of a version that was overtaken says so.
    assert not (await stub.GetClone(pb.GetCloneRequest(clone_id=first))).model.active


async def test_the_students_name_is_nowhere_in_the_stores(cloning: Cloning, capfd: pytest.CaptureFixture[str]) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        await gate.reached.wait()
        stored = await cloning.stored()
        assert any(key.endswith(f"baseline:{clone_id}") for key in stored), "the baseline is there while it is needed"
        assert NAME not in str(stored)
        gate.open()
        await until(stub, clone_id, "completed")
    stored = await cloning.stored()
    assert NAME not in str(stored)
    assert not any("baseline" in key for key in stored), "and gone when it is not"
    (manifest,) = await cloning.adapters.list_versions(STUDENT)
    assert NAME not in str(manifest)
    assert NAME not in str([dataclasses.asdict(plan) for plan in cloning.trainer.plans])
    assert NAME not in "".join(capfd.readouterr())


async def test_what_was_measured_makes_the_next_estimate(stub: CloningStub) -> None:
    first = await stub.StartClone(order("student-0"))
    assert first.estimated_time_seconds == 45
    await watch_all(stub, first.clone_id)
    second = await stub.StartClone(order("student-1"))
    assert second.estimated_time_seconds < 45, "a scripted training takes no time"
