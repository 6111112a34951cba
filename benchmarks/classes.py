"""A class of students trained together, compared with one after another: fine-tuning steps, and whole clones."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.cloning_setup import PLAN, CloningSetup
from benchmarks.figures import Figure, Goal
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.fleet.classroom import Classroom
from cloning_server.learning.optimizer import TrainingStep, compute_gradients
from cloning_server.learning.packing import packs_of
from cloning_server.learning.trainer import run_training
from cloning_server.training import TrainingPlan
from mesh.errors import GateNotPassed
from mesh.lm.lora import LoraSpec
from testing.lessons import DictReplyCache

# Responses per student. Few, so that the clones of a class of eight end in minutes.
STEP_RESPONSES, CLONE_RESPONSES = 8, 8


def steps(setup: CloningSetup) -> Iterator[Figure]:
    """Measures one step of each student in a class: all in one batch, and one after another, alternating."""
    repeats = 1 if setup.quick else 3
    for size in setup.classes:
        class_steps = []
        for number in range(size):
            examples = setup.examples(number, responses=STEP_RESPONSES).train
            packs = packs_of(examples, PLAN.batch_examples, device=setup.base.device)
            factors = LoraFactors(setup.base.model, LoraSpec(), seed=number)
            class_steps.append(TrainingStep(passes=setup.passes, pack=packs[len(packs) // 2], factors=factors))
        compute_gradients(class_steps)
        batched_seconds, sequential_seconds = [], []
        for _ in range(repeats):
            batched_seconds.append(_seconds([class_steps]))
            sequential_seconds.append(_seconds([[step] for step in class_steps]))
        yield Figure(
            figure=f"class_steps_of_{size}",
            value=size / statistics.median(batched_seconds),
            unit="student steps/s",
            baseline=size / statistics.median(sequential_seconds),
            baseline_of="one after another",
            facts={"students": size, "repeats": repeats, "tokens": sum(step.pack.size for step in class_steps)},
        )


def clones(setup: CloningSetup) -> Iterator[Figure]:
    """Measures whole clones: those of a class together, and one after another; both start without cached replies."""
    responses = 6 if setup.quick else CLONE_RESPONSES
    for size in setup.classes:
        plans = [setup.plan(number, responses=responses) for number in range(size)]
        class_seconds, class_ends = asyncio.run(_train(plans, setup, as_class=True))
        sequential_seconds, sequential_ends = asyncio.run(_train(plans, setup, as_class=False))
        yield Figure(
            figure=f"class_of_{size}",
            value=size / class_seconds * 60,
            unit="clones/min",
            baseline=size / sequential_seconds * 60,
            baseline_of="one after another",
            goal=Goal(of="ratio", at_least=2 if setup.base.device.type == "cuda" else 1.35) if size == 8 else None,
            facts={
                "students": size,
                "responses": responses,
                "epochs": PLAN.epochs,
                "median_seconds_to_end": statistics.median(class_ends),
                "median_seconds_to_end_one_after_another": statistics.median(sequential_ends),
            },
        )


async def _train(plans: Sequence[TrainingPlan], setup: CloningSetup, *, as_class: bool) -> tuple[float, list[float]]:
    """Trains in a classroom; returns the seconds of all, and the seconds until the end of each."""
    cache, ends = DictReplyCache(), []
    started_at = time.perf_counter()

    async def attend(room: Classroom, plan: TrainingPlan) -> None:
        try:
            async for _ in room.attend(run_training(plan, setup.base, setup.passes, cache=cache)):
                pass
        except GateNotPassed:
            # So few responses may not pass the gate, which is the last of the work.
            pass
        ends.append(time.perf_counter() - started_at)

    with ThreadPoolExecutor(1) as thread:
        room = Classroom(thread, size=len(plans))
        if as_class:
            await asyncio.gather(*(attend(room, plan) for plan in plans))
        else:
            for plan in plans:
                await attend(room, plan)
    return time.perf_counter() - started_at, ends


def _seconds(groups: Sequence[Sequence[TrainingStep]]) -> float:
    """Returns the seconds to compute the steps, each group in one batch."""
    started_at = time.perf_counter()
    for group in groups:
        compute_gradients(group)
    return time.perf_counter() - started_at
