"""One adapter, trained: examples, fine-tuning, optimisation, in the order they happen.

LoRA on the query and value projections (https://arxiv.org/abs/2106.09685), AdamW with a warm-up and a cosine decay, the
loss on the tutor's tokens alone. A plan's seed decides everything that is drawn. It trains in the base model that it is
given and leaves that as it was.

Knows nothing of processes: it is a generator, and whoever steps it decides where it runs and when it ends.
"""

import hashlib
import math
import random
import struct
import time
from collections.abc import Generator
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor

from cloning_server.clone import CloneState
from cloning_server.distillation import distil
from cloning_server.examples import ExampleSet, Lesson, complete_examples, draft_examples, split_examples
from cloning_server.optimization import Trial, choose_serving, try_scales
from cloning_server.reply_cache import ReplyCache
from cloning_server.reply_loss import batches_of, heldout_loss, reply_loss
from cloning_server.training import Progress, Trained, TrainingPlan
from mesh.adapters.manifest import Lora, Metrics, Profile, Recipe, Serving
from mesh.errors import TrainingDiverged
from mesh.lm.attached import adapter_state, attach, load_into, switched_off
from mesh.lm.base import BaseModel
from mesh.lm.lora import LoraSpec, to_safetensors

# Share of the steps over which the learning rate rises: Adam's first moments are noise.
WARMUP_SHARE = 0.1
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """What fine-tuning came to: the weights after the epoch with the lowest held-out loss, and what it took."""

    state: dict[str, Tensor]
    steps: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimised:
    """What optimisation picked, and the held-out loss of the base model beside it."""

    best: Trial
    serving: Serving
    base_loss: float


def train_adapter(
    plan: TrainingPlan, base: BaseModel, *, cache: ReplyCache
) -> Generator[Progress | Trained, None, None]:
    """Trains one adapter. The base model must not be used elsewhere meanwhile; closing the generator ends it at a step.

    Raises:
        NoTrainableExamples: If the baseline gives fewer than two different items.
        TrainingDiverged: If a loss or the weights are not finite.
        AdapterIncompatible: If the base model lacks the target modules.
    """
    started = time.monotonic()
    examples = yield from _make_examples(plan, base, cache=cache)
    spec = LoraSpec(rank=plan.rank, alpha=plan.alpha, target_modules=plan.target_modules)
    model = attach(base.model, spec, seed=plan.seed)
    try:
        yield Progress(state=CloneState.CREATING_ADAPTER, fraction=1.0, message="The adapter is attached")
        tuned = yield from _fine_tune(plan, model, examples)
        optimised = yield from _optimise(plan, model, examples, tuned=tuned)
    finally:
        model.unload()
    metrics = Metrics(
        heldout_loss_base=optimised.base_loss,
        heldout_loss_adapter=optimised.best.heldout_loss,
        train_steps=tuned.steps,
        seconds_per_step=tuned.seconds / tuned.steps,
        seconds=time.monotonic() - started,
    )
    recipe = _recipe(plan, base, examples, optimised=optimised, metrics=metrics)
    yield Trained(weights=to_safetensors(tuned.state), recipe=recipe)


def _make_examples(plan: TrainingPlan, base: BaseModel, *, cache: ReplyCache) -> Generator[Progress, None, ExampleSet]:
    """Distils what no teacher has commented on, then tokenises and splits."""
    drafts = draft_examples(plan.baseline)
    replies: dict[Lesson, str] = {}
    for step in distil((draft.lesson for draft in drafts if not draft.feedback), base, cache=cache, seed=plan.seed):
        replies.update(step.replies)
        share = step.settled / max(step.total, 1)
        message = f"{len(replies)} of {step.total} replies distilled"
        # The last tenth is for attaching the adapter.
        yield Progress(state=CloneState.CREATING_ADAPTER, fraction=0.9 * share, message=message)
    made, counts = complete_examples(drafts, replies, base.tokenizer)
    return split_examples(made, counts, heldout_share=plan.heldout_share, seed=plan.seed)


def _fine_tune(plan: TrainingPlan, model: PeftModel, examples: ExampleSet) -> Generator[Progress, None, FineTuned]:
    train = batches_of(examples.train, plan.batch_examples, device=model.device)
    heldout = batches_of(examples.heldout, plan.batch_examples, device=model.device)
    steps = plan.epochs * len(train)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    # Repeatable by intent; nothing depends on its being hard to guess.
    order = random.Random(plan.seed)  # noqa: S311
    step, seconds, lowest, best = 0, 0.0, math.inf, adapter_state(model)
    yield Progress(state=CloneState.FINE_TUNING, fraction=0.0, message=f"Starting {steps} steps")
    for epoch in range(1, plan.epochs + 1):
        for batch in order.sample(train, len(train)):
            began = time.monotonic()
            loss = reply_loss(model, batch)
            torch.autograd.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
            _require_finite(loss, norm, step=step)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step, seconds = step + 1, seconds + time.monotonic() - began
            message = f"Epoch {epoch} of {plan.epochs}, step {step} of {steps}, loss {float(loss.detach()):.3f}"
            yield Progress(state=CloneState.FINE_TUNING, fraction=step / steps, message=message)
        measured = heldout_loss(model, heldout)
        _require_finite(torch.tensor(measured), *weights, step=step)
        if measured < lowest:
            lowest, best = measured, adapter_state(model)
    return FineTuned(state=best, steps=steps, seconds=seconds)


def _optimise(
    plan: TrainingPlan, model: PeftModel, examples: ExampleSet, *, tuned: FineTuned
) -> Generator[Progress, None, Optimised]:
    """Picks scale and serving profile. Scale and loss are of the same few examples, so the loss flatters a little."""
    heldout = batches_of(examples.heldout, plan.batch_examples, device=model.device)
    scaling = plan.alpha / plan.rank
    yield Progress(state=CloneState.OPTIMIZING, fraction=0.0, message="Measuring the base model")
    with switched_off(model):
        base_loss = heldout_loss(model, heldout)
    trials: list[Trial] = []
    for trial in try_scales(model, tuned.state, heldout, scaling=scaling):
        trials.append(trial)
        message = f"Strength {trial.scale:g}: held-out loss {trial.heldout_loss:.3f}, base model {base_loss:.3f}"
        yield Progress(state=CloneState.OPTIMIZING, fraction=0.15 * len(trials), message=message)
    best = min(trials, key=lambda trial: trial.heldout_loss)
    load_into(model, tuned.state, scaling=best.scale * scaling)
    serving = choose_serving(model, heldout, [*examples.train, *examples.heldout])
    message = f"Strength {best.scale:g}, temperature {serving.temperature:g}"
    yield Progress(state=CloneState.OPTIMIZING, fraction=1.0, message=message)
    return Optimised(best=best, serving=serving, base_loss=base_loss)


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: a linear rise, then a cosine down to zero."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _require_finite(*values: Tensor, step: int) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in values):
        raise TrainingDiverged(f"training diverged at step {step}", step=step)


def _recipe(
    plan: TrainingPlan, base: BaseModel, examples: ExampleSet, *, optimised: Optimised, metrics: Metrics
) -> Recipe:
    profile = plan.baseline.profile
    return Recipe(
        clone_id=plan.clone_id,
        base_model=base.name,
        base_digest=base.digest,
        lora=Lora(rank=plan.rank, alpha=float(plan.alpha), target_modules=plan.target_modules, dtype="F32"),
        scale=optimised.best.scale,
        serving=optimised.serving,
        examples=examples.counts,
        metrics=metrics,
        seed=plan.seed,
        profile=Profile(
            grade=profile.grade or "",
            disability=str(profile.disability or ""),
            learning_style=str(profile.learning_style or ""),
        ),
        data_digest=_digest(examples),
    )


def _digest(examples: ExampleSet) -> str:
    """sha256 of the tokenised examples: of each its length, its reply's start and its tokens; train, then held-out."""
    digest = hashlib.sha256()
    for example in (*examples.train, *examples.heldout):
        numbers = (len(example.tokens), example.reply_start, *example.tokens)
        digest.update(struct.pack(f"<{len(numbers)}I", *numbers))
    return digest.hexdigest()
