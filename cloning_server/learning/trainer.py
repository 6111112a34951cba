"""One adapter, trained: examples, fine-tuning, optimisation, the gate, in the order they happen.

LoRA on the query and value projections (https://arxiv.org/abs/2106.09685), the loss on the tutor's tokens alone. A
plan's seed decides everything that is drawn. The base model is left as it was.

Knows nothing of processes or of other students: it is a generator that asks for its turns, and whoever steps it decides
where it runs, with whom its turns are taken together, and when it ends.
"""

import hashlib
import math
import random
import struct
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from torch import Tensor

from cloning_server.clone import CloneState
from cloning_server.compute.batch_decoding import Decoding
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.distillation import distil
from cloning_server.examples.examples import ExampleSet, Lesson, complete_examples, draft_examples, split_examples
from cloning_server.examples.reply_cache import ReplyCache
from cloning_server.learning.gate import Figures, measure_replies, openings_of, require_passed
from cloning_server.learning.optimizer import AdapterOptimizer, TrainingStep, heldout_loss, order_of, require_finite
from cloning_server.learning.packing import Pack, packs_of
from cloning_server.learning.passes import Forward
from cloning_server.learning.study import Answer, Study, run_alone
from cloning_server.learning.tuning import Trial, choose_serving, try_scales
from cloning_server.training import Progress, TrainedAdapter, TrainingPlan
from mesh.adapters.manifest import Lora, Metrics, Profile, Recipe, Serving
from mesh.errors import AdapterIncompatible
from mesh.lm.base import BaseModel
from mesh.lm.chat import Example
from mesh.lm.lora import LoraSpec, from_safetensors, to_safetensors
from mesh.tutoring.teaching import rules_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """What fine-tuning came to: the factors after the epoch with the lowest held-out loss, and what it took."""

    state: dict[str, Tensor]
    heldout_loss: float
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """What the parts of one training share."""

    plan: TrainingPlan
    base: BaseModel
    forward: Forward
    examples: ExampleSet
    factors: LoraFactors
    previous: dict[str, Tensor] | None


def train_adapter(
    plan: TrainingPlan, base: BaseModel, *, cache: ReplyCache
) -> Generator[Progress | TrainedAdapter, None, None]:
    """Trains one adapter by itself; see `study`."""
    return run_alone(study(plan, base, cache=cache))


def fine_tune(
    plan: TrainingPlan, base: BaseModel, examples: ExampleSet, *, watch: Callable[[LoraFactors], None] | None = None
) -> FineTuned:
    """Fine-tunes a fresh adapter by itself, on examples that are there already.

    Args:
        plan: How.
        base: The base model.
        examples: What is learned, and what it is measured by.
        watch: Is shown the adapter whenever there is progress; what it takes is not counted.

    Raises:
        TrainingDiverged: If a loss or the weights are not finite.
        AdapterIncompatible: If the base model lacks the target modules.
    """
    course = _course(plan, base, examples)
    tuned: list[FineTuned] = []

    def steps() -> Study:
        tuned.append((yield from _fine_tune(course)))

    for _ in run_alone(steps()):
        if watch is not None:
            watch(course.factors)
    return tuned[0]


def study(plan: TrainingPlan, base: BaseModel, *, cache: ReplyCache) -> Study:
    """Trains one adapter, asking for its turns. The base model must not be used elsewhere while this is stepped.

    Raises:
        NoTrainableExamples: If the baseline gives fewer than two different items.
        TrainingDiverged: If a loss or the weights are not finite.
        GateNotPassed: If the adapter is not better than what it would replace.
        AdapterIncompatible: If the base model lacks the target modules, or the previous version is of another shape.
        AdapterCorrupt: If the previous version can't be read.
        BaseModelUnavailable: If the base model is of an architecture that is not known.
    """
    started = time.monotonic()
    course = yield from _open(plan, base, cache=cache)
    yield Progress(state=CloneState.CREATING_ADAPTER, fraction=1.0, message="The adapter is made")
    tuned = yield from _fine_tune(course)
    best, serving = yield from _optimise(course, tuned)
    figures = yield from _pass_gate(course, best)
    metrics = Metrics(
        heldout_loss_base=figures.base_loss,
        heldout_loss_adapter=figures.loss,
        heldout_loss_previous=figures.previous_loss,
        gate_replies=figures.replies.count,
        gate_well_formed=figures.replies.well_formed,
        gate_well_formed_base=figures.base_replies.well_formed,
        train_steps=tuned.steps,
        seconds_per_step=tuned.seconds / max(tuned.steps, 1),
        seconds=time.monotonic() - started,
    )
    recipe = _recipe(course, scale=best.scale, serving=serving, metrics=metrics)
    yield TrainedAdapter(weights=to_safetensors(tuned.state), recipe=recipe)


def _open(
    plan: TrainingPlan, base: BaseModel, *, cache: ReplyCache
) -> Generator[Progress | Decoding, Answer | None, _Course]:
    """Distils what no teacher has commented on, tokenises and splits, and makes the adapter."""
    drafts = draft_examples(plan.baseline)
    replies: dict[Lesson, str] = {}
    lessons = (draft.lesson for draft in drafts if not draft.feedback)
    distilling = distil(lessons, base, cache=cache, seed=plan.seed)
    step = next(distilling, None)
    while step is not None:
        if isinstance(step, Decoding):
            said = yield step
            assert isinstance(said, Sequence)
            step = distilling.send(said)
            continue
        replies.update(step.replies)
        share = step.settled / max(step.total, 1)
        message = f"{len(replies)} of {step.total} replies distilled"
        # The last tenth is for making the adapter.
        yield Progress(state=CloneState.CREATING_ADAPTER, fraction=0.9 * share, message=message)
        step = next(distilling, None)
    made, counts = complete_examples(drafts, replies, base.tokenizer)
    examples = split_examples(made, counts, heldout_share=plan.heldout_share, seed=plan.seed)
    return _course(plan, base, examples)


def _course(plan: TrainingPlan, base: BaseModel, examples: ExampleSet) -> _Course:
    spec = LoraSpec(rank=plan.rank, alpha=plan.alpha, target_modules=plan.target_modules)
    if plan.previous and plan.previous.base_digest not in {"", base.digest}:
        raise AdapterIncompatible("the version to train on from or to beat belongs to another base model")
    return _Course(
        plan=plan,
        base=base,
        forward=Forward(base.model),
        examples=examples,
        factors=LoraFactors(base.model, spec, seed=plan.seed),
        previous=from_safetensors(plan.previous.weights) if plan.previous else None,
    )


def _fine_tune(course: _Course) -> Generator[Progress | TrainingStep, Answer | None, FineTuned]:
    """Takes the steps of all epochs, or fewer: when the held-out loss turns, more would only learn by heart."""
    plan, forward, factors = course.plan, course.forward, course.factors
    packs, heldout = _packs(course, course.examples.train), _packs(course, course.examples.heldout)
    steps, seconds = plan.epochs * len(packs), 0.0
    learning = AdapterOptimizer(factors, steps=steps, learning_rate=plan.learning_rate)
    # Repeatable by intent; nothing depends on its being hard to guess.
    draws = random.Random(plan.seed)  # noqa: S311
    lowest, best = math.inf, factors.state()
    if course.previous and plan.previous and plan.previous.warm:
        factors.load(course.previous, scaling=plan.previous.scaling)
        lowest, best = heldout_loss(forward, heldout, factors), factors.state()
    yield Progress(state=CloneState.FINE_TUNING, fraction=0.0, message=f"Starting {steps} steps")
    for epoch in range(1, plan.epochs + 1):
        for pack in order_of(packs, draws=draws):
            began = time.monotonic()
            loss = yield TrainingStep(forward=forward, pack=pack, factors=factors)
            assert isinstance(loss, float)
            learning.step(loss)
            seconds += time.monotonic() - began
            done = learning.steps_done
            message = f"Epoch {epoch} of {plan.epochs}, step {done} of {steps}, loss {loss:.3f}"
            yield Progress(state=CloneState.FINE_TUNING, fraction=done / steps, message=message)
        measured = heldout_loss(forward, heldout, factors)
        require_finite(measured, float(factors.vector.detach().norm()), step=learning.steps_done)
        if measured >= lowest:
            if epoch < plan.epochs:
                message = f"Stopped after epoch {epoch}: the held-out loss rose to {measured:.3f}"
                yield Progress(state=CloneState.FINE_TUNING, fraction=1.0, message=message)
            break
        lowest, best = measured, factors.state()
    return FineTuned(state=best, heldout_loss=lowest, steps=learning.steps_done, seconds=seconds)


def _optimise(course: _Course, tuned: FineTuned) -> Generator[Progress, None, tuple[Trial, Serving]]:
    """Picks scale and serving profile. Scale and loss are of the same few examples, so the loss flatters a little."""
    plan, forward, factors = course.plan, course.forward, course.factors
    heldout = _packs(course, course.examples.heldout)
    scaling = plan.alpha / plan.rank
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.0, message="Trying the adapter's strength")
    factors.load(tuned.state, scaling=factors.scaling)
    best = Trial(scale=1.0, heldout_loss=tuned.heldout_loss)
    for count, trial in enumerate(try_scales(forward, factors, heldout, start=best, scaling=scaling), start=1):
        best = min(best, trial, key=lambda one: one.heldout_loss)
        message = f"Strength {trial.scale:g}: held-out loss {trial.heldout_loss:.3f}"
        yield Progress(state=CloneState.OPTIMIZING, fraction=0.1 * count, message=message)
    factors.scaling = best.scale * scaling
    examples = [*course.examples.train, *course.examples.heldout]
    serving = choose_serving(forward, factors, heldout, examples=examples)
    message = f"Strength {best.scale:g}, temperature {serving.temperature:g}"
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.7, message=message)
    return best, serving


def _pass_gate(course: _Course, best: Trial) -> Generator[Progress | Decoding, Answer | None, Figures]:
    """Measures what the gate judges by, and raises if the adapter does not pass."""
    plan, base, forward = course.plan, course.base, course.forward
    held, heldout = course.examples.heldout, _packs(course, course.examples.heldout)
    rules = rules_of(plan.baseline.profile)
    # With the adapter and without it in one batch: a step of few rows takes as long as one of twice as many.
    openings = [*openings_of(base, course.factors, held), *openings_of(base, None, held)]
    said = yield Decoding(layers=forward.layers, openings=openings)
    assert isinstance(said, Sequence)
    replies, base_replies = (
        measure_replies(base, some, rules=rules) for some in (said[: len(said) // 2], said[len(said) // 2 :])
    )
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.8, message=f"{replies.count} replies judged")
    previous_loss = None
    if course.previous and plan.previous and plan.previous.to_beat:
        previous = LoraFactors.of(base.model, course.previous, scaling=plan.previous.scaling)
        previous_loss = heldout_loss(forward, heldout, previous)
    figures = Figures(
        loss=best.heldout_loss,
        base_loss=heldout_loss(forward, heldout, None),
        previous_loss=previous_loss,
        replies=replies,
        base_replies=base_replies,
        taught_tokens=sum(len(one.tokens) - one.reply_start for one in held) / len(held),
    )
    require_passed(figures)
    message = f"Held-out loss {figures.loss:.3f}, base model {figures.base_loss:.3f}"
    yield Progress(state=CloneState.OPTIMIZING, fraction=1.0, message=message)
    return figures


def _packs(course: _Course, examples: Sequence[Example]) -> list[Pack]:
    return packs_of(examples, course.plan.batch_examples, device=course.forward.device)


def _recipe(course: _Course, *, scale: float, serving: Serving, metrics: Metrics) -> Recipe:
    plan, base, examples = course.plan, course.base, course.examples
    profile = plan.baseline.profile
    return Recipe(
        clone_id=plan.clone_id,
        base_model=base.name,
        base_digest=base.digest,
        lora=Lora(rank=plan.rank, alpha=float(plan.alpha), target_modules=plan.target_modules, dtype="F32"),
        scale=scale,
        serving=serving,
        examples=examples.counts,
        metrics=metrics,
        seed=plan.seed,
        profile=Profile(
            grade=profile.grade or "",
            disability=str(profile.disability or ""),
            learning_style=str(profile.learning_style or ""),
        ),
        data_digest=_digest(examples),
        start=plan.start,
    )


def _digest(examples: ExampleSet) -> str:
    """sha256 of the tokenised examples: of each its length, its reply's start and its tokens; train, then held-out."""
    digest = hashlib.sha256()
    for example in (*examples.train, *examples.heldout):
        numbers = (len(example.tokens), example.reply_start, *example.tokens)
        digest.update(struct.pack(f"<{len(numbers)}I", *numbers))
    return digest.hexdigest()
