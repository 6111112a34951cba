"""The training of one adapter: examples, fine-tuning, choice of scale and serving profile, the gate, in this order.

LoRA on the query and value projections (https://arxiv.org/abs/2106.09685), with the loss on the tutor's tokens alone. A
plan's seed determines every random choice. The base model is not changed.

Knows nothing of processes or of other students. A training is a generator that requests its computations: its caller
decides where they run, with which others they are computed together, and when the training ends.
"""

import hashlib
import itertools
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
from cloning_server.examples.examples import ExampleSet, complete_examples, draft_examples, split_examples
from cloning_server.examples.reply_cache import ReplyCache
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.examples.written_examples import with_written_examples
from cloning_server.learning.gate import (
    GateFigures,
    measure_replies,
    openings_of,
    prompts_to_reply,
    replies_in,
    require_passed,
)
from cloning_server.learning.optimizer import AdapterOptimizer, TrainingStep, heldout_loss, order_of, require_finite
from cloning_server.learning.packing import Pack, packs_of
from cloning_server.learning.passes import Passes
from cloning_server.learning.training_run import ComputeResult, TrainingRun, run_alone
from cloning_server.learning.tuning import Trial, choose_serving, try_scales
from cloning_server.training import Progress, TrainedAdapter, TrainingPlan
from mesh.adapters.manifest import Lora, Metrics, Profile, Recipe, Serving
from mesh.errors import AdapterIncompatible
from mesh.lm.chat import Example
from mesh.lm.lora import LoraSpec, from_safetensors, to_safetensors
from mesh.lm.repetition import run_tokens_of
from mesh.main_brain.base import BaseModel
from mesh.tutoring.policy import TeachingPolicy
from mesh.tutoring.teaching import rules_of

# Retained examples per example of an epoch: few, as the Main Brain has learned the like.
_RETAINED_SHARE = 0.05
# Common questions of an epoch: a quarter of what a small baseline shows, and hardly anything of a large one.
_COMMON_QUESTIONS = 5
# Steps after which the held-out loss is measured again. An epoch of a small baseline has three: too few to see a trend.
_STEPS_TO_JUDGE = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """The result of fine-tuning.

    Attributes:
        state: The factors after the epoch with the lowest held-out loss, by PEFT's names.
        heldout_loss: That loss, in nats per reply token.
        steps: How many steps were trained.
        seconds: How long the steps took.
    """

    state: dict[str, Tensor]
    heldout_loss: float
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """What the stages of one training share; `previous` is the state of the previous version, if the plan has one."""

    plan: TrainingPlan
    base: BaseModel
    passes: Passes
    examples: ExampleSet
    factors: LoraFactors
    previous: dict[str, Tensor] | None


def fine_tune(
    plan: TrainingPlan,
    base: BaseModel,
    passes: Passes,
    examples: ExampleSet,
    *,
    watch: Callable[[LoraFactors], None] | None = None,
) -> FineTuned:
    """Fine-tunes a new adapter on given examples, by itself.

    Args:
        plan: The settings.
        base: The base model.
        passes: The base model's passes.
        examples: Examples to train on, and to measure with.
        watch: Called with the adapter at every progress; its time is not counted.

    Raises:
        TrainingDiverged: A loss or the weights are not finite.
        AdapterIncompatible: The base model lacks a target module.
    """
    setup = _set_up(plan, base, passes, examples)

    def show(_: object) -> None:
        if watch is not None:
            watch(setup.factors)

    return run_alone(_fine_tune(setup), watch=show)


def run_training(plan: TrainingPlan, base: BaseModel, passes: Passes, *, cache: ReplyCache) -> TrainingRun:
    """Trains one adapter; see `TrainingRun`. Do not use the base model elsewhere while this is advanced.

    Raises:
        NoTrainableExamples: The baseline gives fewer than two different items.
        TrainingDiverged: A loss or the weights are not finite.
        GateNotPassed: The adapter is not better than the version that it would replace.
        AdapterIncompatible: The base model lacks a target module, or the previous version has another shape.
        AdapterCorrupt: The previous version can't be read.
    """
    started_at = time.monotonic()
    setup = yield from _prepare(plan, base, passes, cache=cache)
    yield Progress(state=CloneState.CREATING_ADAPTER, fraction=1.0, message="The adapter is created")
    fine_tuned = yield from _fine_tune(setup)
    best, serving = yield from _tune(setup, fine_tuned)
    figures = yield from _pass_gate(setup, best, serving)
    metrics = Metrics(
        heldout_loss_base=figures.base_loss,
        heldout_loss_adapter=figures.loss,
        heldout_loss_previous=figures.previous_loss,
        gate_replies=figures.replies.count,
        gate_well_formed=figures.replies.well_formed,
        gate_well_formed_base=figures.base_replies.well_formed,
        gate_policy_signs=figures.replies.signs,
        gate_policy_signs_shown=figures.replies.signs_shown,
        gate_policy_signs_shown_base=figures.base_replies.signs_shown,
        train_steps=fine_tuned.steps,
        seconds_per_step=fine_tuned.seconds / max(fine_tuned.steps, 1),
        seconds=time.monotonic() - started_at,
    )
    recipe = _recipe(setup, scale=best.scale, serving=serving, metrics=metrics)
    yield TrainedAdapter(weights=to_safetensors(fine_tuned.state), recipe=recipe)


def _prepare(
    plan: TrainingPlan, base: BaseModel, passes: Passes, *, cache: ReplyCache
) -> Generator[Progress | Decoding, ComputeResult | None, _Setup]:
    """Distils missing replies, tokenises and splits the examples, and initialises the adapter."""
    policy, profile = _policy_of(plan), plan.baseline.profile
    drafts = draft_examples(plan.baseline, policy)
    briefs = [draft.brief for draft in drafts if not draft.feedback]
    replies = yield from distil(briefs, base, layers=passes.layers, cache=cache, seed=plan.seed)
    completed, counts = complete_examples(drafts, replies, base.tokenizer)
    examples = split_examples(completed, counts, heldout_share=plan.heldout_share, seed=plan.seed)
    return _set_up(plan, base, passes, with_written_examples(examples, profile, policy, base.tokenizer))


def _policy_of(plan: TrainingPlan) -> TeachingPolicy:
    """The policy that shapes the examples, that the gate looks for, and that the manifest tells."""
    return compute_policy(plan.baseline, earlier=plan.earlier_policy)


def _set_up(plan: TrainingPlan, base: BaseModel, passes: Passes, examples: ExampleSet) -> _Setup:
    spec = LoraSpec(rank=plan.rank, alpha=plan.alpha, target_modules=plan.target_modules)
    if plan.previous and plan.previous.base_digest not in {"", base.digest}:
        raise AdapterIncompatible("the previous version belongs to another base model: choose a version of this one")
    return _Setup(
        plan=plan,
        base=base,
        passes=passes,
        examples=examples,
        factors=LoraFactors(base.model, spec, seed=plan.seed),
        previous=from_safetensors(plan.previous.weights) if plan.previous else None,
    )


def _fine_tune(setup: _Setup) -> Generator[Progress | TrainingStep, ComputeResult | None, FineTuned]:
    """Trains all epochs, or fewer: it stops when the held-out loss rises, as more would overfit."""
    plan, passes, factors = setup.plan, setup.passes, setup.factors
    heldout = _packs(setup, setup.examples.measured)
    epochs = _epochs_of(setup)
    steps, seconds = sum(map(len, epochs)), 0.0
    optimizer = AdapterOptimizer(factors, steps=steps, learning_rate=plan.learning_rate)
    # Repeatable on purpose; it need not be hard to guess.
    draws = random.Random(plan.seed)  # noqa: S311
    lowest, best, judged_at = math.inf, factors.state(), 0
    if setup.previous and plan.previous and plan.previous.warm:
        factors.load(setup.previous, scaling=plan.previous.scaling)
        lowest, best = heldout_loss(passes, heldout, factors), factors.state()
    yield Progress(state=CloneState.FINE_TUNING, fraction=0.0, message=f"Starting {steps} steps")
    for epoch, packs in enumerate(epochs, start=1):
        for pack in order_of(packs, draws=draws):
            started_at = time.monotonic()
            loss = yield TrainingStep(passes=passes, pack=pack, factors=factors)
            assert isinstance(loss, float)
            optimizer.step(loss)
            seconds += time.monotonic() - started_at
            steps_done = optimizer.steps_done
            message = f"Epoch {epoch} of {len(epochs)}, step {steps_done} of {steps}, loss {loss:.3f}"
            yield Progress(state=CloneState.FINE_TUNING, fraction=steps_done / steps, message=message)
        is_last = epoch == len(epochs)
        if optimizer.steps_done - judged_at < _STEPS_TO_JUDGE and not is_last:
            continue
        judged_at = optimizer.steps_done
        epoch_loss = heldout_loss(passes, heldout, factors)
        require_finite(epoch_loss, float(factors.vector.detach().norm()), step=optimizer.steps_done)
        if epoch_loss >= lowest:
            if not is_last:
                message = f"Stopped after epoch {epoch}: the held-out loss rose to {epoch_loss:.3f}"
                yield Progress(state=CloneState.FINE_TUNING, fraction=1.0, message=message)
            break
        lowest, best = epoch_loss, factors.state()
    return FineTuned(state=best, heldout_loss=lowest, steps=optimizer.steps_done, seconds=seconds)


def _epochs_of(setup: _Setup) -> list[list[Pack]]:
    """The packs of each epoch: a round of the examples, and some of the retained and the common ones in turn."""
    plan, rounds, retained = setup.plan, setup.examples.rounds, setup.examples.retained
    epochs: list[list[Pack]] = []
    retained_in_turn, common_in_turn = itertools.cycle(retained), itertools.cycle(setup.examples.common)
    # Each round has the same items, so it has a pack at least.
    while len(epochs) < plan.epochs or sum(map(len, epochs)) < plan.least_steps:
        examples = rounds[len(epochs) % len(rounds)]
        count = max(1, round(_RETAINED_SHARE * len(examples)))
        beside = itertools.islice(retained_in_turn, min(count, len(retained)))
        common = itertools.islice(common_in_turn, min(_COMMON_QUESTIONS, len(setup.examples.common)))
        epochs.append(_packs(setup, (*examples, *beside, *common)))
    return epochs


def _tune(setup: _Setup, fine_tuned: FineTuned) -> Generator[Progress, None, tuple[Trial, Serving]]:
    """Chooses scale and serving profile; the loss is optimistic, as the same few examples choose and measure."""
    plan, passes, factors = setup.plan, setup.passes, setup.factors
    heldout = _packs(setup, setup.examples.measured)
    scaling = plan.alpha / plan.rank
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.0, message="Trying scales of the adapter")
    factors.load(fine_tuned.state, scaling=factors.scaling)
    best = Trial(scale=1.0, heldout_loss=fine_tuned.heldout_loss)
    for count, trial in enumerate(try_scales(passes, factors, heldout, start=best, scaling=scaling), start=1):
        best = min(best, trial, key=lambda candidate: candidate.heldout_loss)
        message = f"Scale {trial.scale:g}: held-out loss {trial.heldout_loss:.3f}"
        yield Progress(state=CloneState.OPTIMIZING, fraction=0.1 * count, message=message)
    factors.scaling = best.scale * scaling
    examples = [*setup.examples.train, *setup.examples.heldout]
    serving = choose_serving(
        passes,
        factors,
        heldout,
        examples=examples,
        run_tokens=run_tokens_of(setup.base.tokenizer),
        least_run=setup.base.unrepeated_run,
    )
    message = f"Scale {best.scale:g}, temperature {serving.temperature:g}"
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.7, message=message)
    return best, serving


def _pass_gate(
    setup: _Setup, best: Trial, serving: Serving
) -> Generator[Progress | Decoding, ComputeResult | None, GateFigures]:
    """Measures the adapter, and raises if it does not pass the gate."""
    plan, base, passes = setup.plan, setup.base, setup.passes
    packs, examples = _packs(setup, setup.examples.measured), prompts_to_reply(setup.examples.heldout)
    rules, policy = rules_of(plan.baseline.profile), _policy_of(plan)
    # With and without the adapter in one batch: a decoding step with few rows takes as long as one with twice as many.
    openings = [
        *openings_of(base, setup.factors, examples, unrepeated_run=serving.unrepeated_run),
        *openings_of(base, None, examples, unrepeated_run=base.unrepeated_run),
    ]
    continuations = yield Decoding(layers=passes.layers, openings=openings)
    assert isinstance(continuations, Sequence)
    middle = len(examples)
    replies, base_replies, example_replies = (
        measure_replies(base, part, examples=examples, rules=rules, policy=policy)
        for part in (continuations[:middle], continuations[middle:], replies_in(examples))
    )
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.8, message=f"{replies.count} replies measured")
    previous_loss = None
    if setup.previous and plan.previous and plan.previous.to_beat:
        previous = LoraFactors.of(base.model, setup.previous, scaling=plan.previous.scaling)
        previous_loss = heldout_loss(passes, packs, previous)
    figures = GateFigures(
        loss=best.heldout_loss,
        base_loss=heldout_loss(passes, packs, None),
        previous_loss=previous_loss,
        replies=replies,
        base_replies=base_replies,
        example_replies=example_replies,
    )
    require_passed(figures)
    message = f"Held-out loss {figures.loss:.3f}, base model {figures.base_loss:.3f}"
    yield Progress(state=CloneState.OPTIMIZING, fraction=1.0, message=message)
    return figures


def _packs(setup: _Setup, examples: Sequence[Example]) -> list[Pack]:
    return packs_of(examples, setup.plan.batch_examples, device=setup.passes.device)


def _recipe(setup: _Setup, *, scale: float, serving: Serving, metrics: Metrics) -> Recipe:
    plan, base, examples = setup.plan, setup.base, setup.examples
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
        policy=_policy_of(plan),
    )


def _digest(examples: ExampleSet) -> str:
    """sha256 of the tokenised examples, train before held-out before retained before common.

    For each its length, its reply's start, its tokens.
    """
    digest = hashlib.sha256()
    for example in (*examples.train, *examples.heldout, *examples.retained, *examples.common):
        numbers = (len(example.tokens), example.reply_start, *example.tokens)
        digest.update(struct.pack(f"<{len(numbers)}I", *numbers))
    return digest.hexdigest()
