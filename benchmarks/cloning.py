"""How fast students' models are made: fine-tuning beside a plain PEFT loop, and a class beside one after another.

    python -m benchmarks.cloning [--only NAME ...] [--students FILE ...] [--responses N] [--quick] [--out DIR]

Prints one JSON line a figure after one that tells the machine, as `benchmarks.serving` does, and keeps them in
`OUT/cloning-NAME.jsonl`. A student's file is a StartClone request in JSON; without any, six questions made up for the
tests stand in, which show that it works and no more.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf import json_format

from benchmarks import plain_peft
from benchmarks.figures import Figure, Goal, Results
from cloning_server import wire
from cloning_server.clone import Baseline
from cloning_server.distillation import distil
from cloning_server.examples import ExampleSet, Lesson, complete_examples, draft_examples, split_examples
from cloning_server.factors import Factors
from cloning_server.forward import Forward
from cloning_server.learning import Turn, heldout_loss, take_turns
from cloning_server.packing import packs_of
from cloning_server.trainer import fine_tune
from cloning_server.training import TrainingPlan
from mesh import log, settings
from mesh.lm.base import BaseModel, load_base
from mesh.lm.lora import LoraSpec
from mesh.settings import BaseModelSettings
from tests.cloning_server.learning import DictReplyCache, commented

CLASSES = (1, 2, 4, 8)
# As a clone is trained; examples are made beforehand.
PLAN = TrainingPlan(clone_id="benchmark", baseline=commented(2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a run stands on.

    Attributes:
        base: The base model.
        students: The examples of each student.
        quick: Whether to show that it works rather than to measure.
    """

    base: BaseModel
    students: Sequence[ExampleSet]
    quick: bool


def fine_tune_step(ground: Ground) -> Iterator[Figure]:
    """One student's fine-tuning, beside a plain loop from the same first weights over the same examples."""
    base, examples = ground.base, ground.students[0]
    forward, heldout = Forward(base.model), packs_of(examples.heldout, 8, device=ground.base.device)
    plan = dataclasses.replace(PLAN, epochs=1 if ground.quick else 3)
    start = Factors(base.model, LoraSpec(), seed=plan.seed)
    for batch in sorted({plan.batch_examples, plain_peft.BATCH}):
        tuned = fine_tune(dataclasses.replace(plan, batch_examples=batch), base, examples)
        ours = Factors.of(base.model, tuned.state, scaling=start.scaling)
        loss = heldout_loss(forward, heldout, ours)
        if batch == plan.batch_examples:
            seconds, facts = tuned.seconds, {"heldout_loss": loss, "steps": tuned.steps}
        else:
            facts[f"seconds_in_batches_of_{batch}"] = tuned.seconds
            facts[f"heldout_loss_in_batches_of_{batch}"] = loss
    state, plain_seconds = plain_peft.fine_tune(base, examples.train, plan=plan, start=start.state())
    plain_loss = heldout_loss(forward, heldout, Factors.of(base.model, state, scaling=start.scaling))
    counts = {"examples": len(examples.train), "epochs": plan.epochs, "batch": plan.batch_examples}
    yield Figure(
        figure="fine_tune_speed",
        value=plan.epochs * len(examples.train) / seconds,
        unit="examples/s",
        baseline=plan.epochs * len(examples.train) / plain_seconds,
        baseline_of="plain PEFT loop, padded batches of 8, bf16",
        goal=Goal(of="ratio", at_least=3),
        facts={**counts, **facts, "seconds": seconds, "plain_seconds": plain_seconds},
    )
    yield Figure(
        figure="fine_tune_heldout_loss",
        value=float(str(facts["heldout_loss"])),
        unit="nats/token",
        baseline=plain_loss,
        baseline_of="plain PEFT loop, same run",
        # Equal within what a handful of held-out examples can tell.
        goal=Goal(of="ratio", at_most=1.01),
        facts={"base_model": heldout_loss(forward, heldout, None), "heldout": len(examples.heldout)},
    )


def classes(ground: Ground) -> Iterator[Figure]:
    """Steps of a class taken together, beside the same steps one after another, in turns."""
    forward, repeats = Forward(ground.base.model), 1 if ground.quick else 5
    for size in CLASSES:
        turns = []
        for number in range(size):
            examples = ground.students[number % len(ground.students)].train
            packs = packs_of(examples, PLAN.batch_examples, device=ground.base.device)
            factors = Factors(ground.base.model, LoraSpec(), seed=number)
            turns.append(Turn(forward=forward, pack=packs[len(packs) // 2], factors=factors))
        take_turns(turns)
        together, apart = [], []
        for _ in range(repeats):
            together.append(_seconds([turns]))
            apart.append(_seconds([[turn] for turn in turns]))
        yield Figure(
            figure=f"class_of_{size}",
            value=size / statistics.median(together),
            unit="student steps/s",
            baseline=size / statistics.median(apart),
            baseline_of="one after another",
            goal=Goal(of="ratio", at_least=2 if ground.base.device.type == "cuda" else 1.35) if size == 8 else None,
            facts={"repeats": repeats, "tokens": sum(turn.pack.size for turn in turns)},
        )


_SECTIONS: dict[str, Callable[[Ground], Iterator[Figure]]] = {"fine_tune": fine_tune_step, "class": classes}


def main() -> None:
    """Measures and prints."""
    asked = _parser().parse_args()
    # Standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark")
    read = settings.load(BaseModelSettings)
    base = load_base(read.base_model, cache_dir=read.model_cache_dir, device=asked.device, dtype="bfloat16")
    baselines = [_baseline(path) for path in asked.students] or [commented(6)]
    students = [_examples(one, base, responses=asked.responses) for one in baselines]
    ground = Ground(base=base, students=students, quick=asked.quick)
    told = {"base_model": base.name, "students": len(asked.students), "responses": asked.responses}
    for name in asked.only or _SECTIONS:
        told |= {"section": name, "quick": asked.quick, "device": asked.device}
        results = Results(asked.out / f"cloning-{name}.jsonl", asked=told)
        for figure in _SECTIONS[name](ground):
            results.add(figure)


def _baseline(path: Path) -> Baseline:
    return wire.order_from(json_format.Parse(path.read_text(), pb.StartCloneRequest())).baseline


def _examples(baseline: Baseline, base: BaseModel, *, responses: int) -> ExampleSet:
    """Distilled and split as a clone would."""
    drafts = draft_examples(dataclasses.replace(baseline, responses=baseline.responses[:responses]))
    replies: dict[Lesson, str] = {}
    for step in distil((one.lesson for one in drafts if not one.feedback), base, cache=DictReplyCache(), seed=0):
        replies.update(step.replies)
    made, counts = complete_examples(drafts, replies, base.tokenizer)
    return split_examples(made, counts, heldout_share=PLAN.heldout_share, seed=0)


def _seconds(groups: Sequence[Sequence[Turn]]) -> float:
    """Of the turns, those of a group taken together."""
    began = time.perf_counter()
    for turns in groups:
        take_turns(turns)
    return time.perf_counter() - began


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cloning", description="How fast models are made.")
    parser.add_argument("--only", nargs="+", choices=_SECTIONS, metavar="NAME", help=f"of {', '.join(_SECTIONS)}")
    parser.add_argument("--students", type=Path, nargs="+", default=[], help="StartClone requests, a file each")
    parser.add_argument("--responses", type=int, default=100, help="of each student, at most")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    return parser


if __name__ == "__main__":
    main()
