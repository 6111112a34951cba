"""Errors of the data, the trainer, the brain and bugs: which end a clone, and after which it runs again."""

import asyncio
import logging

import pytest
from aivo.cloning.v1 import cloning_service_pb2 as pb

from cloning_server.clone import CloneState
from mesh.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    DeadlineExceeded,
    NoTrainableExamples,
    TrainerUnavailable,
    TrainingDiverged,
)
from mesh.rpc.errors import error_from
from tests.cloning_server.conftest import (
    STUDENT,
    Cloning,
    CloningStub,
    start_clone,
    watch_all,
)
from tests.cloning_server.running.conftest import run_clone


@pytest.mark.parametrize("kind", [AdapterIncompatible, AdapterCorrupt])
async def test_a_model_that_the_brain_refuses_ends_the_clone_with_the_brains_reason(
    cloning: Cloning, stub: CloningStub, kind: type[AdapterIncompatible | AdapterCorrupt]
) -> None:
    first = await run_clone(stub)
    cloning.brain.faults.append(kind("it does not fit", version=2))
    last = (await watch_all(stub, await start_clone(stub)))[-1]
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
    clone_id = await start_clone(stub)
    last = (await watch_all(stub, clone_id))[-1]
    assert (last.status, last.attempt) == ("failed", 1)
    error = error_from(last.error)
    assert (type(error), str(error)) == (type(fault), str(fault))
    assert error.facts == {name: str(fact) for name, fact in fault.facts.items()}
    assert (await stub.GetClone(pb.GetCloneRequest(clone_id=clone_id))).error == last.error
    await run_clone(stub)


async def test_a_training_that_takes_too_long_is_stopped_and_ends_the_clone(cloning: Cloning) -> None:
    cloning.set(train_timeout_seconds=0.2)
    cloning.trainer.gates[CloneState.FINE_TUNING].shut()
    async with cloning.serve() as stub:
        clone_id = await start_clone(stub)
        last = (await watch_all(stub, clone_id))[-1]
        assert (last.status, last.attempt) == ("failed", 1)
        assert isinstance(error_from(last.error), DeadlineExceeded)
        assert "TRAIN_TIMEOUT_SECONDS" in last.error.message
        assert cloning.trainer.stopped_clones == [clone_id]
        cloning.trainer.gates[CloneState.FINE_TUNING].open()
        await run_clone(stub)


async def test_a_trainer_that_died_is_tried_again(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.faults.append(TrainerUnavailable("the actor died"))
    changes = await watch_all(stub, await start_clone(stub))
    assert (changes[-1].status, changes[-1].attempt) == ("completed", 2)


async def test_a_clone_that_is_tried_again_leaves_its_slot_to_others(cloning: Cloning) -> None:
    cloning.set(trainer_pause_seconds=0.3)
    cloning.trainer.faults.append(TrainerUnavailable("the actor died"))
    async with cloning.serve() as stub:
        first, second = await start_clone(stub, "first"), await start_clone(stub, "second")
        await asyncio.gather(watch_all(stub, first), watch_all(stub, second))
    assert [plan.clone_id for plan in cloning.trainer.plans] == [first, second, first]


async def test_a_trainer_that_dies_every_time_ends_the_clone(cloning: Cloning, stub: CloningStub) -> None:
    cloning.trainer.faults.extend(TrainerUnavailable("the actor died") for _ in range(9))
    last = (await watch_all(stub, await start_clone(stub)))[-1]
    assert (last.status, last.attempt) == ("failed", 3)
    assert isinstance(error_from(last.error), TrainerUnavailable)


async def test_a_bug_ends_the_clone_without_a_word_of_the_student(
    cloning: Cloning, stub: CloningStub, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = "the student wrote this"
    cloning.trainer.faults.append(ValueError(secret))
    with caplog.at_level(logging.DEBUG):
        last = (await watch_all(stub, await start_clone(stub)))[-1]
    assert (last.status, error_from(last.error).reason) == ("failed", "INTERNAL")
    assert secret not in str(last)
    assert secret not in caplog.text + "".join(capfd.readouterr())
    # The next clone runs: a bug in one costs no other.
    await run_clone(stub)
