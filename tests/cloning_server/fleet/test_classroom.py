"""A class: trainings that run together end as they would alone, and do not disturb each other."""

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace

import pytest
import torch

from cloning_server.clone import CloneState
from cloning_server.compute.batch_decoding import Decoding
from cloning_server.fleet import classroom
from cloning_server.fleet.classroom import Classroom
from cloning_server.learning.optimizer import TrainingStep
from cloning_server.learning.passes import Passes
from cloning_server.learning.trainer import run_training
from cloning_server.learning.training_run import ComputeRequest, ComputeResult, TrainingRun, compute
from cloning_server.training import Progress, TrainedAdapter, TrainingPlan
from mesh.errors import NoTrainableExamples, TrainingDiverged
from mesh.lm.lora import from_safetensors
from mesh.main_brain.base import BaseModel
from testing.lessons import DictReplyCache, commented, plan_of
from testing.trainings import train_alone

PLANS = [plan_of(commented(count), seed=count) for count in (2, 3, 4)]

Start = Callable[[TrainingPlan], TrainingRun]
Alone = Callable[[TrainingPlan], TrainedAdapter]


@pytest.fixture
def start(small_base: BaseModel, small_passes: Passes) -> Start:
    return lambda plan: run_training(plan, small_base, small_passes, cache=DictReplyCache())


@pytest.fixture
def alone(small_base: BaseModel, small_passes: Passes) -> Alone:
    return lambda plan: train_alone(plan, small_base, small_passes).adapter


@pytest.fixture
async def room() -> AsyncIterator[Classroom]:
    with ThreadPoolExecutor(1) as thread:
        yield Classroom(thread, size=8)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[ComputeRequest]]:
    """The requests that were computed together."""
    calls: list[Sequence[ComputeRequest]] = []

    def recorded(requests: Sequence[ComputeRequest]) -> list[ComputeResult]:
        calls.append(requests)
        return compute(requests)

    monkeypatch.setattr(classroom, "compute", recorded)
    return calls


def most_together(batches: Sequence[Sequence[ComputeRequest]], kind: type[ComputeRequest]) -> int:
    return max(sum(isinstance(request, kind) for request in requests) for requests in batches)


async def test_a_classroom_that_can_not_compute_tells_everybody_who_attends(start: Start) -> None:
    thread = ThreadPoolExecutor(1)
    thread.shutdown()
    room = Classroom(thread, size=8)
    calls = [attend(room, start(plan)) for plan in PLANS[:2]]
    errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert [type(error) for error in errors] == [RuntimeError] * 2


async def attend(room: Classroom, run: TrainingRun) -> TrainedAdapter:
    *_, last = [item async for item in room.attend(run)]
    assert isinstance(last, TrainedAdapter)
    return last


def assert_alike(adapter: TrainedAdapter, expected: TrainedAdapter) -> None:
    states = from_safetensors(adapter.weights), from_safetensors(expected.weights)
    vector, expected_vector = (torch.cat([state[name].flatten() for name in sorted(state)]) for state in states)
    # Rounding depends on the other rows of a product.
    assert torch.nn.functional.cosine_similarity(vector, expected_vector, dim=0) > 0.99
    assert adapter.recipe.data_digest == expected.recipe.data_digest
    loss = expected.recipe.metrics.heldout_loss_adapter
    assert adapter.recipe.metrics.heldout_loss_adapter == pytest.approx(loss, rel=0.03)


async def test_a_class_ends_as_each_would_alone_and_computes_its_steps_together(
    room: Classroom, start: Start, alone: Alone, batches: list[Sequence[ComputeRequest]]
) -> None:
    together = await asyncio.gather(*(attend(room, start(plan)) for plan in PLANS))
    assert most_together(batches, TrainingStep) == len(PLANS)
    for plan, adapter in zip(PLANS, together, strict=True):
        assert_alike(adapter, alone(plan))


async def test_a_training_that_stops_or_fails_does_not_disturb_the_others(
    room: Classroom, start: Start, alone: Alone
) -> None:
    async def leave() -> None:
        async with aclosing(room.attend(start(plan_of(commented(5), epochs=3)))) as items:
            async for item in items:
                if isinstance(item, Progress) and item.state is CloneState.FINE_TUNING and item.fraction > 0:
                    return

    stays = asyncio.create_task(attend(room, start(PLANS[2])))
    with pytest.raises(NoTrainableExamples):
        await attend(room, start(plan_of(commented(1))))
    with pytest.raises(TrainingDiverged):
        await attend(room, start(plan_of(commented(3), epochs=3, learning_rate=math.inf)))
    await leave()
    assert_alike(await stays, alone(PLANS[2]))


async def test_a_training_that_is_closed_in_the_classroom_is_closed_itself(room: Classroom, start: Start) -> None:
    run = start(plan_of(commented(5), epochs=3))
    async with aclosing(room.attend(run)) as items:
        await anext(items)
    async with asyncio.timeout(30):
        while inspect.getgeneratorstate(run) != inspect.GEN_CLOSED:  # noqa: ASYNC110 - a generator has no event
            await asyncio.sleep(0)


async def test_a_class_that_is_too_large_for_one_pass_is_computed_in_several(
    start: Start, batches: list[Sequence[ComputeRequest]]
) -> None:
    with ThreadPoolExecutor(1) as thread:
        room = Classroom(thread, size=2)
        adapters = await asyncio.gather(*(attend(room, start(plan)) for plan in PLANS))
    assert len(adapters) == 3
    assert most_together(batches, TrainingStep) == 2


async def test_a_pass_that_fails_because_of_one_training_is_computed_again_without_it(
    room: Classroom, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_for_one_example(requests: Sequence[ComputeRequest]) -> list[ComputeResult]:
        if any(isinstance(request, TrainingStep) and len(request.pack.reply_lengths) == 1 for request in requests):
            raise MemoryError
        return compute(requests)

    monkeypatch.setattr(classroom, "compute", fails_for_one_example)
    # One plan has an example in each pack, the other has all of them in one.
    one, all_in_one = (replace(plan_of(commented(3)), batch_examples=count) for count in (1, 100))
    fails, passes = await asyncio.gather(
        attend(room, start(one)), attend(room, start(all_in_one)), return_exceptions=True
    )
    assert isinstance(fails, MemoryError)
    assert isinstance(passes, TrainedAdapter)


async def test_replies_of_several_students_are_decoded_in_one_batch(
    room: Classroom, start: Start, alone: Alone, batches: list[Sequence[ComputeRequest]]
) -> None:
    # Of one size, so that both come to the gate at once; the seeds give them other adapters.
    plans = [plan_of(commented(2), seed=seed) for seed in (1, 2)]
    together = await asyncio.gather(*(attend(room, start(plan)) for plan in plans))
    assert most_together(batches, Decoding) == 2
    for plan, adapter in zip(plans, together, strict=True):
        assert_alike(adapter, alone(plan))
