"""How fast students' models are made: fine-tuning beside a plain PEFT loop, a class, and the way to the first reply.

    python -m benchmarks.cloning [--only NAME ...] [--students FILE ...] [--responses N] [--quick] [--out DIR]

Prints one JSON line a figure after one that tells the machine, as `benchmarks.serving` does, and keeps them in
`OUT/cloning-NAME.jsonl`. A student's file is a StartClone request in JSON; without any, six questions made up for the
tests stand in, which show that it works and no more.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks import plain_peft, report
from benchmarks.classes import clones, steps
from benchmarks.figures import Figure, Goal, Results
from benchmarks.first_reply import first_reply
from benchmarks.lessons import PLAN, Ground, read_requests
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import packs_of
from cloning_server.learning.passes import Forward
from cloning_server.learning.trainer import fine_tune
from mesh import log
from mesh.lm.base import load_base
from mesh.lm.lora import LoraSpec
from mesh.settings import BaseModelSettings, load_settings


def fine_tune_step(ground: Ground, *, responses: int) -> Iterator[Figure]:
    """One student's fine-tuning, beside a plain loop from the same first weights over the same examples.

    Both run twice, in turns, and count by their faster run, as what else happens on the machine only slows.
    """
    base, examples = ground.base, ground.examples(0, responses=responses)
    forward, heldout = Forward(base.model), packs_of(examples.heldout, 8, device=ground.base.device)
    plan = dataclasses.replace(PLAN, epochs=1 if ground.quick else PLAN.epochs)
    start = LoraFactors(base.model, LoraSpec(), seed=plan.seed)
    losses: list[float] = []

    def measure(factors: LoraFactors) -> None:
        losses.append(heldout_loss(forward, heldout, factors))

    tuned, plain = [], []
    for turn in range(1 if ground.quick else 2):
        tuned.append(fine_tune(plan, base, examples, watch=measure if turn == 0 else None))
        plain.append(plain_peft.fine_tune(base, examples.train, plan=plan, start=start.state()))
    seconds, plain_seconds = min(run.seconds for run in tuned), min(seconds for _, seconds in plain)
    state, plain_state, steps = tuned[0].state, plain[0][0], tuned[0].steps
    loss, plain_loss = (
        heldout_loss(forward, heldout, LoraFactors.of(base.model, weights, scaling=start.scaling))
        for weights in (state, plain_state)
    )
    epochs = round(steps * plan.batch_examples / len(examples.train)) or 1
    yield Figure(
        figure="fine_tune_speed",
        value=epochs * len(examples.train) / seconds,
        unit="examples/s",
        baseline=plan.epochs * len(examples.train) / plain_seconds,
        baseline_of=f"plain PEFT loop, padded batches of {plain_peft.BATCH}, {ground.dtype}",
        goal=Goal(of="ratio", at_least=3),
        facts={
            "examples": len(examples.train),
            "epochs": plan.epochs,
            "epochs_until_the_loss_turned": epochs,
            "batch": plan.batch_examples,
            "steps": steps,
            "seconds": [round(run.seconds, 2) for run in tuned],
            "plain_seconds": [round(seconds, 2) for _, seconds in plain],
        },
    )
    yield Figure(
        figure="fine_tune_heldout_loss",
        value=loss,
        unit="nats/token",
        baseline=plain_loss,
        baseline_of="plain PEFT loop, same run",
        goal=Goal(of="ratio", at_most=1),
        facts={"base_model_loss": heldout_loss(forward, heldout, None), "heldout": len(examples.heldout)},
    )
    # The first loss is that of the first weights, the others come after a step each.
    reached = next((step for step, loss_of_step in enumerate(losses) if loss_of_step <= plain_loss), None)
    if reached is not None:
        yield Figure(
            figure="fine_tune_to_equal_loss",
            value=seconds * reached / steps,
            unit="s",
            baseline=plain_seconds,
            baseline_of="plain PEFT loop, all its steps",
            facts={"steps": reached, "of_steps": steps, "loss": losses[reached]},
        )


def main() -> None:
    """Measures and prints."""
    args = _parser().parse_args()
    # Standard output is for figures.
    log.configure(level="warning", form="console", service="benchmark", packages=("benchmarks", "mesh"))
    settings = load_settings(BaseModelSettings)
    base = load_base(settings.base_model, cache_dir=settings.model_cache_dir, device=args.device, dtype=args.dtype)
    dtype = str(base.dtype).removeprefix("torch.")
    ground = Ground(
        base=base,
        requests=read_requests(args.students),
        quick=args.quick,
        dtype=dtype,
        classes=args.classes,
    )
    sections: dict[str, Callable[[Ground], Iterator[Figure]]] = {
        "fine_tune": partial(fine_tune_step, responses=args.responses),
        "steps": steps,
        "clones": clones,
        "first_reply": partial(first_reply, responses=args.responses),
    }
    conditions = {"base_model": base.name, "dtype": dtype, "students": len(args.students), "responses": args.responses}
    for name in args.only or sections:
        conditions |= {"section": name, "quick": args.quick, "device": args.device}
        results = Results(args.out / f"cloning-{name}.jsonl", conditions=conditions)
        for figure in sections[name](ground):
            results.add(figure)
    report.write(args.out)


def _parser() -> argparse.ArgumentParser:
    names = ("fine_tune", "steps", "clones", "first_reply")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cloning", description="How fast models are made.")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--students", type=Path, nargs="+", default=[], help="StartClone requests, a file each")
    parser.add_argument("--responses", type=int, default=100, help="of a student who is tuned or waits for a reply")
    parser.add_argument("--classes", type=int, nargs="+", default=(1, 2, 4, 8), help="sizes of classes")
    parser.add_argument("--quick", action="store_true", help="show that it works; the figures mean nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    # Of both sides of every comparison; `auto` is what the servers compute in on this machine.
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float16", "float32"))
    return parser


if __name__ == "__main__":
    main()
