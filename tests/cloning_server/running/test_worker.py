"""Clones as a real server runs them, and what becomes of them when something dies."""

import asyncio
import dataclasses
import itertools
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb
from aivo.cloning.v1 import student_model_service_pb2 as models_pb

from cloning_server.clone import CloneState
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    BrainUnavailable,
    ModelNotLoaded,
    NoTrainableExamples,
    TrainerUnavailable,
    TrainingDiverged,
)
from mesh.rpc.errors import error_from
from testing.parts.stores import RedisEndpoint, S3Endpoint, seaweed, valkey
from testing.scripted.trainer import recipe_for, weights_for
from tests.cloning_server.conftest import NAME, STUDENT, Cloning, CloningStub, order, until, watch, watch_all

WORDS = [
    "queued",
    "loading_base_model",
    "creating_adapter",
    "fine_tuning",
    "optimizing",
    "saving",
    "deploying",
    "completed",
]


async def start(stub: CloningStub, student_id: str = STUDENT) -> str:
    return (await stub.StartClone(order(student_id))).clone_id


def words(changes: list[pb.WatchCloneResponse]) -> list[str]:
    """The status words, each once in the order of their first."""
    return list(dict.fromkeys(change.status for change in changes))


async def test_a_clone_goes_through_every_state_in_order_and_its_model_answers(
    cloning: Cloning, stub: CloningStub
) -> None:
    changes = await watch_all(stub, await start(stub))
    assert words(changes) == WORDS
    last = changes[-1]
    assert (last.progress, last.attempt, last.model.version, last.model.active) == (100, 1, 1, True)
    # To probe it before it is made active, and once more to have the pointer read.
    assert cloning.brain.warmed_versions == [(STUDENT, 1)] * 2
    active = await cloning.adapters.resolve_active(STUDENT)
    assert active is not None
    assert active.sha256 == last.model.sha256


async def test_the_model_is_told_from_deploying_on_and_not_before(stub: CloningStub) -> None:
    changes = await watch_all(stub, await start(stub))
    told = {change.status for change in changes if change.HasField("model")}
    assert told == {"deploying", "completed"}


async def test_progress_never_goes_back_and_every_change_moves_something(stub: CloningStub) -> None:
    changes = await watch_all(stub, await start(stub))
    for before, after in itertools.pairwise(changes):
        assert after.progress >= before.progress
        assert (after.status, after.progress) != (before.status, before.progress)
    assert len([change for change in changes if change.status == "fine_tuning"]) > 5, "steps are told as they happen"


async def test_the_plan_holds_the_baseline_and_the_epochs_of_the_settings(cloning: Cloning) -> None:
    cloning.set(clone_epochs=7)
    async with cloning.serve() as stub:
        await watch_all(stub, await start(stub))
    (plan,) = cloning.trainer.plans
    assert plan.epochs == 7
    assert [response.question for response in plan.baseline.responses][:2] == ["What is 0 + 0?", "What is 1 + 1?"]


async def test_clones_run_one_after_another_in_the_order_of_acceptance(cloning: Cloning, stub: CloningStub) -> None:
    accepted = [await start(stub, f"student-{n}") for n in range(6)]
    await asyncio.gather(*(watch_all(stub, clone_id) for clone_id in accepted))
    assert [plan.clone_id for plan in cloning.trainer.plans] == accepted


async def test_as_many_clones_run_at_once_as_the_settings_allow(cloning: Cloning) -> None:
    cloning.set(parallel_clones=3)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        accepted = [await start(stub, f"student-{n}") for n in range(5)]
        await asyncio.gather(*(until(stub, clone_id, "creating_adapter") for clone_id in accepted[:3]))
        health = await stub.GetHealth(pb.GetHealthRequest())
        assert (health.running_clones, health.queued_clones) == (3, 2)
        gate.open()
        assert [(await watch_all(stub, clone_id))[-1].status for clone_id in accepted] == ["completed"] * 5


async def test_a_second_clone_makes_a_second_version_which_answers(cloning: Cloning, stub: CloningStub) -> None:
    first, second = await start_and_finish(stub), await start_and_finish(stub)
    models = await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))
    assert [(model.version, model.active, model.clone_id) for model in models.models] == [
        (2, True, second),
        (1, False, first),
    ]
    assert models.active_version == 2
    # The clone of a version that was overtaken says so.
    assert not (await stub.GetClone(pb.GetCloneRequest(clone_id=first))).model.active


async def start_and_finish(stub: CloningStub) -> str:
    clone_id = await start(stub)
    assert (await watch_all(stub, clone_id))[-1].status == "completed"
    return clone_id


@pytest.mark.parametrize("state", [CloneState.LOADING_BASE_MODEL, CloneState.FINE_TUNING, CloneState.OPTIMIZING])
async def test_a_clone_that_a_restart_cut_off_starts_anew_and_makes_one_version(
    cloning: Cloning, state: CloneState
) -> None:
    gate = cloning.trainer.gates[state]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start(stub)
        await gate.reached.wait()
    assert cloning.trainer.stopped_clones == [clone_id], "the server that ends stops the training"
    gate.open()
    async with cloning.serve() as stub:
        changes = await watch_all(stub, clone_id)
    assert changes[-1].status == "completed"
    assert words([change for change in changes if change.attempt == changes[-1].attempt]) == WORDS
    for before, after in itertools.pairwise(changes):
        assert after.attempt == before.attempt or (after.status, after.progress) == ("queued", 0)
        assert after.attempt > before.attempt or after.progress >= before.progress
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1


async def test_the_clones_that_a_restart_cut_off_come_before_those_that_waited(cloning: Cloning) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        cut_off, waited = await start(stub, "first"), await start(stub, "second")
        await gate.reached.wait()
    gate.open()
    async with cloning.serve() as stub:
        await asyncio.gather(*(watch_all(stub, clone_id) for clone_id in (cut_off, waited)))
    assert [plan.clone_id for plan in cloning.trainer.plans] == [cut_off, cut_off, waited]


async def test_a_restart_while_deploying_deploys_and_trains_no_second_time(cloning: Cloning) -> None:
    cloning.brain.hold.clear()
    async with cloning.serve() as stub:
        clone_id = await start(stub)
        await cloning.brain.warm_called.wait()
    cloning.brain.hold.set()
    async with cloning.serve() as stub:
        changes = await watch_all(stub, clone_id)
    assert changes[-1].status == "completed"
    assert words([change for change in changes if change.attempt == 2]) == ["queued", "deploying", "completed"]
    assert len(cloning.trainer.plans) == 1
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1


async def test_a_crash_between_publishing_and_telling_so_trains_no_second_time(cloning: Cloning) -> None:
    gate = cloning.trainer.gates[CloneState.OPTIMIZING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start(stub)
        await gate.reached.wait()
        # What the server would have done before it died: stage, and not even move the pointer.
        (plan,) = cloning.trainer.plans
        await cloning.adapters.stage(STUDENT, weights_for(plan), recipe=recipe_for(plan))
    gate.open()
    async with cloning.serve() as stub:
        assert (await watch_all(stub, clone_id))[-1].status == "completed"
    assert len(cloning.trainer.plans) == 1
    assert len(await cloning.adapters.list_versions(STUDENT)) == 1
    active = await cloning.adapters.resolve_active(STUDENT)
    assert active is not None


async def test_a_clone_waits_for_a_brain_that_is_down(cloning: Cloning, stub: CloningStub) -> None:
    await cloning.brain.stop()
    clone_id = await start(stub)
    await until(stub, clone_id, "deploying")
    await cloning.brain.start()
    assert (await watch_all(stub, clone_id))[-1].status == "completed"
    assert cloning.brain.warmed_versions == [(STUDENT, 1)] * 2


async def test_a_clone_outlives_a_brain_that_dies_while_it_loads_the_model(cloning: Cloning, stub: CloningStub) -> None:
    cloning.brain.hold.clear()
    clone_id = await start(stub)
    await cloning.brain.warm_called.wait()
    await cloning.brain.stop()
    cloning.brain.hold.set()
    await cloning.brain.start()
    assert (await watch_all(stub, clone_id))[-1].status == "completed"


async def test_a_brain_whose_model_still_loads_is_waited_for(cloning: Cloning, stub: CloningStub) -> None:
    cloning.brain.faults.append(ModelNotLoaded("the base model is loading"))
    assert (await watch_all(stub, await start(stub)))[-1].status == "completed"


async def test_a_brain_that_is_down_for_too_long_ends_the_clone(cloning: Cloning) -> None:
    cloning.set(deploy_timeout_seconds=0.3)
    await cloning.brain.stop()
    async with cloning.serve() as stub:
        last = (await watch_all(stub, await start(stub)))[-1]
    assert last.status == "failed"
    error = error_from(last.error)
    assert isinstance(error, BrainUnavailable)
    assert "waited_seconds" in error.facts
    assert (last.model.version, last.model.active) == (1, False), "the version is there, and answers nobody"
    assert await cloning.adapters.resolve_active(STUDENT) is None


@pytest.mark.parametrize("kind", [AdapterIncompatible, AdapterCorrupt])
async def test_a_model_that_the_brain_refuses_ends_the_clone_with_the_brains_reason(
    cloning: Cloning, stub: CloningStub, kind: type[AdapterIncompatible | AdapterCorrupt]
) -> None:
    first = await start_and_finish(stub)
    cloning.brain.faults.append(kind("it does not fit", version=2))
    last = (await watch_all(stub, await start(stub)))[-1]
    assert last.status == "failed"
    assert isinstance(error_from(last.error), kind)
    # Nobody ever asked the new version anything.
    active = await cloning.adapters.resolve_active(STUDENT)
    assert active is not None
    assert active.ref.version == 1
    assert (await stub.GetClone(pb.GetCloneRequest(clone_id=first))).model.active


@pytest.mark.parametrize("fault", [NoTrainableExamples(responses=3, usable=1), TrainingDiverged(step=12)])
async def test_a_fault_of_the_data_ends_the_clone_at_once_and_frees_the_student(
    cloning: Cloning, stub: CloningStub, fault: NoTrainableExamples | TrainingDiverged
) -> None:
    cloning.trainer.faults.append(fault)
    clone_id = await start(stub)
    last = (await watch_all(stub, clone_id))[-1]
    assert (last.status, last.attempt) == ("failed", 1)
    told = error_from(last.error)
    assert (type(told), str(told)) == (type(fault), str(fault))
    assert told.facts == {name: str(fact) for name, fact in fault.facts.items()}
    assert (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).error == last.error
    await start_and_finish(stub)


async def test_a_trainer_that_died_is_tried_again(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.faults.append(TrainerUnavailable("the actor died"))
    changes = await watch_all(stub, await start(stub))
    assert (changes[-1].status, changes[-1].attempt) == ("completed", 2)


async def test_a_clone_that_is_tried_again_leaves_its_slot_to_others(cloning: Cloning) -> None:
    cloning.set(trainer_pause_seconds=0.3)
    cloning.trainer.faults.append(TrainerUnavailable("the actor died"))
    async with cloning.serve() as stub:
        first, second = await start(stub, "first"), await start(stub, "second")
        await asyncio.gather(watch_all(stub, first), watch_all(stub, second))
    assert [plan.clone_id for plan in cloning.trainer.plans] == [first, second, first]


async def test_a_trainer_that_dies_every_time_ends_the_clone(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.faults.extend(TrainerUnavailable("the actor died") for _ in range(9))
    last = (await watch_all(stub, await start(stub)))[-1]
    assert (last.status, last.attempt) == ("failed", 3)
    assert isinstance(error_from(last.error), TrainerUnavailable)


async def test_a_bug_ends_the_clone_without_a_word_of_the_student(
    cloning: Cloning, stub: CloningStub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "the student wrote this"
    cloning.trainer.faults.append(ValueError(secret))
    with caplog.at_level(logging.DEBUG):
        last = (await watch_all(stub, await start(stub)))[-1]
    assert (last.status, error_from(last.error).reason) == ("failed", "INTERNAL")
    assert secret not in str(last)
    assert secret not in caplog.text + "".join(capfd.readouterr())
    # The next clone runs: a bug in one costs no other.
    await start_and_finish(stub)


@pytest.fixture
async def own_redis(tmp_path: Path) -> AsyncIterator[RedisEndpoint]:
    """A Valkey of this test alone, to be stopped."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    async with valkey(folder) as endpoint:
        yield endpoint


@pytest.fixture
async def own_s3(tmp_path: Path, s3_endpoint: S3Endpoint) -> AsyncIterator[S3Endpoint]:
    """A SeaweedFS of this test alone, to be stopped; the shared one set the credentials."""
    folder = tmp_path / "seaweed"
    folder.mkdir()
    async with seaweed(folder) as endpoint:
        yield endpoint


async def test_a_clone_waits_for_an_adapter_store_that_is_down(cloning: Cloning, own_s3: S3Endpoint) -> None:
    gate = cloning.trainer.gates[CloneState.OPTIMIZING]
    gate.shut()
    cloning.set(s3_endpoint_url=own_s3.url, s3_connect_timeout_seconds=0.2, s3_read_timeout_seconds=1)
    async with cloning.serve() as stub:
        clone_id = await start(stub)
        await gate.reached.wait()
        await own_s3.part.kill()
        gate.open()
        await until(stub, clone_id, "saving")
        await own_s3.part.start()
        # The brain of this test reads the other store; that it was told to warm a version is all it can show here.
        await until_left(stub, clone_id, "saving")
        clone = await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))
        # Numbers may have gaps: a write whose answer was lost in the outage took one.
        models = await stub.ListStudentModels(models_pb.ListStudentModelsRequest(student_id=STUDENT))
        assert [model.sha256 for model in models.models] == [clone.model.sha256]


async def until_left(stub: CloningStub, clone_id: str, status: str) -> None:
    """Returns once the clone has been there and is elsewhere."""
    async for change in watch(stub, clone_id):
        if change.status != status:
            return


async def test_a_clone_outlives_an_outage_of_the_clone_store(cloning: Cloning, own_redis: RedisEndpoint) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    cloning.set(redis_url=own_redis.url)
    async with cloning.serve() as stub:
        clone_id = await start(stub)
        await gate.reached.wait()
        await own_redis.part.kill()
        gate.open()
        await own_redis.part.start()
        changes = await watch_all(stub, clone_id)
    assert (changes[-1].status, changes[-1].attempt) == ("completed", 1)
    assert words(changes) == WORDS


async def test_a_server_that_starts_before_its_clone_store_takes_clones_up_later(
    cloning: Cloning, own_redis: RedisEndpoint
) -> None:
    cloning.set(redis_url=own_redis.url)
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start(stub)
        await gate.reached.wait()
    gate.open()
    await own_redis.part.stop()
    async with cloning.serve() as stub:
        await own_redis.part.start()
        assert (await watch_all(stub, clone_id))[-1].status == "completed"


async def test_the_students_name_is_nowhere_in_the_stores(cloning: Cloning, capfd: pytest.CaptureFixture[str]) -> None:
    gate = cloning.trainer.gates[CloneState.FINE_TUNING]
    gate.shut()
    async with cloning.serve() as stub:
        clone_id = await start(stub)
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
