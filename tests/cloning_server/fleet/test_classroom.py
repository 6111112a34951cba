"""A class at once: trainings that are stepped together end as they would alone, and none disturbs another."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
import torch

from cloning_server.clone import CloneState
from cloning_server.compute.batch_decoding import Decoding
from cloning_server.fleet import classroom
from cloning_server.fleet.classroom import Classroom
from cloning_server.learning.optimizer import TrainingStep
from cloning_server.learning.study import Answer, Ask, answers_to
from cloning_server.learning.trainer import study, train_adapter
from cloning_server.training import Progress, TrainedAdapter, TrainingPlan
from mesh.errors import NoTrainableExamples, TrainingDiverged
from mesh.lm.base import BaseModel
from mesh.lm.lora import from_safetensors
from testing.lessons import DictReplyCache, commented, plan_of

PLANS = [plan_of(commented(count), seed=count) for count in (2, 3, 4)]


@pytest.fixture
async def room() -> AsyncIterator[Classroom]:
    with ThreadPoolExecutor(1) as thread:
        yield Classroom(thread, size=8)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many turns each pass took together."""
    sizes: list[int] = []

    def counted(asks: Sequence[Ask]) -> list[Answer]:
        sizes.append(sum(isinstance(ask, TrainingStep) for ask in asks))
        return answers_to(asks)

    monkeypatch.setattr(classroom, "answers_to", counted)
    return sizes


async def attend(room: Classroom, plan: TrainingPlan, base: BaseModel) -> TrainedAdapter:
    *_, last = [step async for step in room.attend(study(plan, base, cache=DictReplyCache()))]
    assert isinstance(last, TrainedAdapter)
    return last


def alone(plan: TrainingPlan, base: BaseModel) -> TrainedAdapter:
    *_, last = train_adapter(plan, base, cache=DictReplyCache())
    assert isinstance(last, TrainedAdapter)
    return last


def assert_alike(one: TrainedAdapter, other: TrainedAdapter) -> None:
    first, second = from_safetensors(one.weights), from_safetensors(other.weights)
    vector, expected = (torch.cat([state[name].flatten() for name in sorted(first)]) for state in (first, second))
    # Rounding in bf16 differs with the rows beside one's own.
    assert torch.nn.functional.cosine_similarity(vector, expected, dim=0) > 0.99
    assert one.recipe.data_digest == other.recipe.data_digest
    loss = other.recipe.metrics.heldout_loss_adapter
    assert one.recipe.metrics.heldout_loss_adapter == pytest.approx(loss, rel=0.03)


async def test_a_class_ends_as_each_would_alone_and_takes_its_steps_together(
    room: Classroom, base: BaseModel, passes: list[int]
) -> None:
    together = await asyncio.gather(*(attend(room, plan, base) for plan in PLANS))
    assert max(passes) == len(PLANS)
    for plan, trained in zip(PLANS, together, strict=True):
        assert_alike(trained, alone(plan, base))


async def test_whoever_leaves_or_fails_disturbs_nobody(room: Classroom, base: BaseModel) -> None:
    async def leave() -> None:
        steps = room.attend(study(plan_of(commented(5), epochs=3), base, cache=DictReplyCache()))
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, Progress) and step.state is CloneState.FINE_TUNING and step.fraction > 0:
                    return

    stays = asyncio.create_task(attend(room, PLANS[2], base))
    with pytest.raises(NoTrainableExamples):
        await attend(room, plan_of(commented(1)), base)
    with pytest.raises(TrainingDiverged):
        await attend(room, plan_of(commented(3), epochs=3, learning_rate=math.inf), base)
    await leave()
    assert_alike(await stays, alone(PLANS[2], base))


async def test_more_than_a_class_take_turns(base: BaseModel, passes: list[int]) -> None:
    with ThreadPoolExecutor(1) as thread:
        room = Classroom(thread, size=2)
        ended = await asyncio.gather(*(attend(room, plan, base) for plan in PLANS))
    assert len(ended) == 3
    assert max(passes) == 2


async def test_a_pass_that_fails_for_one_is_taken_again_without_the_others(
    room: Classroom, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(asks: Sequence[Ask]) -> list[Answer]:
        if any(isinstance(ask, TrainingStep) and len(ask.pack.reply_lengths) == 1 for ask in asks):
            raise MemoryError
        return answers_to(asks)

    monkeypatch.setattr(classroom, "answers_to", picky)
    # Two responses leave one to train on, four leave three.
    fails, passes = await asyncio.gather(
        attend(room, PLANS[0], base), attend(room, plan_of(commented(3)), base), return_exceptions=True
    )
    assert isinstance(fails, MemoryError)
    assert isinstance(passes, TrainedAdapter)


async def test_replies_of_several_students_are_decoded_in_one_batch(
    room: Classroom, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []

    def counted(asks: Sequence[Ask]) -> list[Answer]:
        batches.append(sum(isinstance(ask, Decoding) for ask in asks))
        return answers_to(asks)

    monkeypatch.setattr(classroom, "answers_to", counted)
    # Of one size, so that both come to the gate at once; the seeds give them other adapters.
    plans = [plan_of(commented(2), seed=seed) for seed in (1, 2)]
    together = await asyncio.gather(*(attend(room, plan, base) for plan in plans))
    assert max(batches) == 2
    for plan, trained in zip(plans, together, strict=True):
        assert_alike(trained, alone(plan, base))
