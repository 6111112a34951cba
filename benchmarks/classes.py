"""A class of students beside one student after another: steps of fine-tuning, and whole clones."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures import Figure, Goal
from benchmarks.lessons import PLAN, Ground
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.fleet.classroom import Classroom
from cloning_server.learning.optimizer import TrainingStep, compute_gradients
from cloning_server.learning.packing import packs_of
from cloning_server.learning.passes import Forward
from cloning_server.learning.trainer import study
from cloning_server.training import TrainingPlan
from mesh.errors import GateNotPassed
from mesh.lm.base import BaseModel
from mesh.lm.lora import LoraSpec
from testing.lessons import DictReplyCache

# Of each student, for a step of fine-tuning; and for a whole clone, of which a class of eight is to end in minutes.
STEP_RESPONSES, CLONE_RESPONSES = 8, 8


def steps(ground: Ground) -> Iterator[Figure]:
    """Steps of a class taken together, beside the same steps one after another, in turns."""
    forward, repeats = Forward(ground.base.model), 1 if ground.quick else 3
    for size in ground.classes:
        turns = []
        for number in range(size):
            examples = ground.examples(number, responses=STEP_RESPONSES).train
            packs = packs_of(examples, PLAN.batch_examples, device=ground.base.device)
            factors = LoraFactors(ground.base.model, LoraSpec(), seed=number)
            turns.append(TrainingStep(forward=forward, pack=packs[len(packs) // 2], factors=factors))
        compute_gradients(turns)
        together, apart = [], []
        for _ in range(repeats):
            together.append(_seconds([turns]))
            apart.append(_seconds([[turn] for turn in turns]))
        yield Figure(
            figure=f"class_steps_of_{size}",
            value=size / statistics.median(together),
            unit="student steps/s",
            baseline=size / statistics.median(apart),
            baseline_of="one after another",
            facts={"students": size, "repeats": repeats, "tokens": sum(turn.pack.size for turn in turns)},
        )


def clones(ground: Ground) -> Iterator[Figure]:
    """Whole clones of a class, beside the same clones one after another; each side with an empty cache of replies."""
    responses = 6 if ground.quick else CLONE_RESPONSES
    for size in ground.classes:
        plans = [ground.plan(number, responses=responses) for number in range(size)]
        together, ends = asyncio.run(_train(plans, ground.base, together=True))
        apart, apart_ends = asyncio.run(_train(plans, ground.base, together=False))
        yield Figure(
            figure=f"class_of_{size}",
            value=size / together * 60,
            unit="clones/min",
            baseline=size / apart * 60,
            baseline_of="one after another",
            goal=Goal(of="ratio", at_least=2 if ground.base.device.type == "cuda" else 1.35) if size == 8 else None,
            facts={
                "students": size,
                "responses": responses,
                "epochs": PLAN.epochs,
                "median_seconds_to_end": statistics.median(ends),
                "median_seconds_to_end_one_after_another": statistics.median(apart_ends),
            },
        )


async def _train(plans: Sequence[TrainingPlan], base: BaseModel, *, together: bool) -> tuple[float, list[float]]:
    """Trains in a classroom; the seconds of all, and of each until its end."""
    cache, ends = DictReplyCache(), []
    began = time.perf_counter()

    async def attend(room: Classroom, plan: TrainingPlan) -> None:
        try:
            async for _ in room.attend(study(plan, base, cache=cache)):
                pass
        except GateNotPassed:
            # The few responses may not be enough; all of the work was done.
            pass
        ends.append(time.perf_counter() - began)

    with ThreadPoolExecutor(1) as thread:
        room = Classroom(thread, size=len(plans))
        if together:
            await asyncio.gather(*(attend(room, plan) for plan in plans))
        else:
            for plan in plans:
                await attend(room, plan)
    return time.perf_counter() - began, ends


def _seconds(groups: Sequence[Sequence[TrainingStep]]) -> float:
    """Of the turns, those of a group taken together."""
    began = time.perf_counter()
    for turns in groups:
        compute_gradients(turns)
    return time.perf_counter() - began
