"""Fine-tuning of one student's adapter, compared with the usual training loop of transformers and PEFT."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks import plain_peft
from benchmarks.cloning_setup import PLAN, CloningSetup
from benchmarks.figures import Figure, Goal
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.examples import ExampleSet
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import packs_of
from cloning_server.learning.trainer import FineTuned, fine_tune
from cloning_server.training import TrainingPlan
from mesh.lm.lora import LoraSpec

# Held-out examples per pass.
_HELDOUT_BATCH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Runs:
    """The runs of AIVO and of the plain loop.

    Attributes:
        tuned: The runs of AIVO, with equal seeds.
        plain_seconds: Seconds of the steps of each run of the plain loop.
        loss: Held-out loss after fine-tuning.
        plain_loss: Held-out loss after the plain loop.
        base_loss: Held-out loss of the base model.
        loss_by_step: AIVO's held-out loss before the first step and after each step.
    """

    tuned: Sequence[FineTuned]
    plain_seconds: Sequence[float]
    loss: float
    plain_loss: float
    base_loss: float
    loss_by_step: Sequence[float]

    @property
    def steps(self) -> int:
        """AIVO's number of steps."""
        return self.tuned[0].steps

    @property
    def seconds(self) -> float:
        """The faster run of AIVO, because a disturbance of the machine can only slow a run down."""
        return min(run.seconds for run in self.tuned)

    @property
    def best_plain_seconds(self) -> float:
        """The faster run of the plain loop."""
        return min(self.plain_seconds)


def fine_tuning(setup: CloningSetup, *, responses: int) -> Iterator[Figure]:
    """Measures speed and held-out loss of both loops, from the same initial weights on the same examples."""
    examples = setup.examples(0, responses=responses)
    plan = dataclasses.replace(PLAN, epochs=1 if setup.quick else PLAN.epochs)
    runs = _run(setup, examples, plan)
    yield _speed(runs, examples, plan, dtype=setup.dtype)
    yield Figure(
        figure="fine_tune_heldout_loss",
        value=runs.loss,
        unit="nats/token",
        baseline=runs.plain_loss,
        baseline_of="plain PEFT loop, same run",
        goal=Goal(of="ratio", at_most=1),
        facts={"base_model_loss": runs.base_loss, "heldout": len(examples.heldout)},
    )
    yield from _time_to_equal_loss(runs)


def _run(setup: CloningSetup, examples: ExampleSet, plan: TrainingPlan) -> _Runs:
    """Runs both loops twice, alternating."""
    base, passes = setup.base, setup.passes
    heldout = packs_of(examples.heldout, _HELDOUT_BATCH, device=base.device)
    start = LoraFactors(base.model, LoraSpec(), seed=plan.seed)
    loss_by_step: list[float] = []

    def watch(factors: LoraFactors) -> None:
        loss_by_step.append(heldout_loss(passes, heldout, factors))

    tuned, plain = [], []
    for number in range(1 if setup.quick else 2):
        tuned.append(fine_tune(plan, base, passes, examples, watch=watch if number == 0 else None))
        plain.append(plain_peft.fine_tune(base, examples.train, plan=plan, start=start.state()))
    loss, plain_loss = (
        heldout_loss(passes, heldout, LoraFactors.of(base.model, state, scaling=start.scaling))
        for state in (tuned[0].state, plain[0][0])
    )
    return _Runs(
        tuned=tuned,
        plain_seconds=[seconds for _, seconds in plain],
        loss=loss,
        plain_loss=plain_loss,
        base_loss=heldout_loss(passes, heldout, None),
        loss_by_step=loss_by_step,
    )


def _speed(runs: _Runs, examples: ExampleSet, plan: TrainingPlan, *, dtype: str) -> Figure:
    # Fine-tuning ends early where the held-out loss rises.
    epochs = round(runs.steps * plan.batch_examples / len(examples.train)) or 1
    return Figure(
        figure="fine_tune_speed",
        value=epochs * len(examples.train) / runs.seconds,
        unit="examples/s",
        baseline=plan.epochs * len(examples.train) / runs.best_plain_seconds,
        baseline_of=f"plain PEFT loop, padded batches of {plain_peft.BATCH}, {dtype}",
        goal=Goal(of="ratio", at_least=3),
        facts={
            "examples": len(examples.train),
            "epochs": plan.epochs,
            "epochs_until_the_loss_turned": epochs,
            "batch": plan.batch_examples,
            "steps": runs.steps,
            "seconds": [round(run.seconds, 2) for run in runs.tuned],
            "plain_seconds": [round(seconds, 2) for seconds in runs.plain_seconds],
        },
    )


def _time_to_equal_loss(runs: _Runs) -> Iterator[Figure]:
    """Yields the time until AIVO reaches the final loss of the plain loop, if it does."""
    step = next((step for step, loss in enumerate(runs.loss_by_step) if loss <= runs.plain_loss), None)
    if step is not None:
        yield Figure(
            figure="fine_tune_to_equal_loss",
            value=runs.seconds * step / runs.steps,
            unit="s",
            baseline=runs.best_plain_seconds,
            baseline_of="plain PEFT loop, all its steps",
            facts={"steps": step, "of_steps": runs.steps, "loss": runs.loss_by_step[step]},
        )
