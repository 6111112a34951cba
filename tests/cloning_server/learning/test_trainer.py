"""The trainer, on the real base model: what a training yields, what it learns, and what it leaves alone."""

import math
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

from cloning_server.clone import CloneState
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.examples import complete_examples, draft_examples, split_examples
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import packs_of
from cloning_server.learning.passes import Forward
from cloning_server.learning.trainer import fine_tune, train_adapter
from cloning_server.learning.tuning import SCALES
from cloning_server.training import PreviousVersion, Progress, TrainedAdapter, TrainingPlan
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Start
from mesh.errors import AdapterCorrupt, AdapterIncompatible, GateNotPassed, NoTrainableExamples, TrainingDiverged
from mesh.lm.base import BaseModel, DtypeName, load_base
from mesh.lm.catalogue import DEFAULT_BASE_MODEL
from mesh.lm.lora import from_safetensors
from testing.lessons import (
    FEEDBACK,
    ITEMS,
    PROFILE,
    DictReplyCache,
    baseline_of,
    commented,
    graded,
    plan_of,
)

PLAN = plan_of(commented(5), epochs=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    progress: list[Progress]
    trained: TrainedAdapter


def trained_by(plan: TrainingPlan, base: BaseModel) -> Training:
    *progress, trained = train_adapter(plan, base, cache=DictReplyCache())
    assert isinstance(trained, TrainedAdapter)
    return Training(progress=[step for step in progress if isinstance(step, Progress)], trained=trained)


def previous_of(training: Training, *, warm: bool = False) -> PreviousVersion:
    trained = training.trained
    return PreviousVersion(weights=trained.weights, scaling=trained.recipe.scaling, warm=warm)


@pytest.fixture(scope="module")
def training(base: BaseModel) -> Training:
    return trained_by(PLAN, base)


def test_the_held_out_loss_falls_below_the_base_models(training: Training) -> None:
    metrics = training.trained.recipe.metrics
    assert metrics.heldout_loss_adapter < 0.95 * metrics.heldout_loss_base


def test_progress_is_one_step_a_step_and_never_goes_back(training: Training) -> None:
    states = [(state, list(steps)) for state, steps in groupby(training.progress, key=lambda step: step.state)]
    assert [state for state, _ in states] == [
        CloneState.CREATING_ADAPTER,
        CloneState.FINE_TUNING,
        CloneState.OPTIMIZING,
    ]
    for _, steps in states:
        fractions = [step.fraction for step in steps]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    # Four examples in batches of two, three times; and the message before the first.
    assert len(states[1][1]) == 1 + training.trained.recipe.metrics.train_steps == 7


def test_no_message_holds_a_word_of_the_student_or_teacher(training: Training) -> None:
    told = " ".join(step.message for step in training.progress)
    assert not any(text in told for item in ITEMS for text in item)
    assert "Almost" not in told


def test_the_recipe_tells_how_the_version_came_to_be(training: Training, base: BaseModel) -> None:
    recipe = training.trained.recipe
    counts = recipe.examples
    assert (counts.given, counts.feedback, counts.distilled, counts.dropped) == (5, 5, 0, 0)
    assert (counts.train, counts.heldout) == (4, 1)
    assert (recipe.clone_id, recipe.base_model, recipe.base_digest) == ("clone1", base.name, base.digest)
    assert (recipe.profile.grade, recipe.profile.disability) == (PROFILE.grade, "adhd")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.target_modules) == (16, 32.0, ("q_proj", "v_proj"))
    assert recipe.scale in SCALES
    assert 0.2 <= recipe.serving.temperature <= 1.0


def test_the_adapter_is_sound_and_says_something(training: Training) -> None:
    weights = training.trained.weights
    inspect(weights, lora=training.trained.recipe.lora, limits=AdapterLimits())
    assert any(bool(tensor.any()) for name, tensor in from_safetensors(weights).items() if "lora_B" in name)
    assert len(weights) <= 4 * 1024 * 1024


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(base: BaseModel) -> None:
    plan = plan_of(commented(3))
    first = trained_by(plan, base).trained
    again = trained_by(plan, base).trained
    other = trained_by(replace(plan, seed=8), base).trained
    assert again.weights == first.weights
    assert again.recipe.data_digest == first.recipe.data_digest
    assert other.weights != first.weights


def test_what_is_held_out_is_never_trained_on(base: BaseModel) -> None:
    plan = plan_of(commented(3))
    made, counts = complete_examples(draft_examples(plan.baseline), {}, base.tokenizer)
    split = split_examples(made, counts, heldout_share=plan.heldout_share, seed=plan.seed)
    kept_apart = next(index for index, (_, example) in enumerate(made) if example in split.heldout)
    changed = plan_of(commented(3, feedback={kept_apart: f"Quite another reply. {FEEDBACK}"}))
    one, other = trained_by(plan, base).trained, trained_by(changed, base).trained
    assert one.recipe.data_digest != other.recipe.data_digest
    assert one.weights == other.weights


def test_it_stops_when_the_held_out_loss_turns_and_keeps_the_best(base: BaseModel) -> None:
    plan = plan_of(commented(3), epochs=30, learning_rate=1e-2)
    made, counts = complete_examples(draft_examples(plan.baseline), {}, base.tokenizer)
    examples = split_examples(made, counts, heldout_share=plan.heldout_share, seed=plan.seed)
    tuned = fine_tune(plan, base, examples)
    assert 1 < tuned.steps < plan.epochs
    forward, heldout = Forward(base.model), packs_of(examples.heldout, 2, device=base.device)
    kept = LoraFactors.of(base.model, tuned.state, scaling=plan.alpha / plan.rank)
    assert heldout_loss(forward, heldout, kept) < heldout_loss(forward, heldout, None)


def test_a_version_that_is_no_better_than_the_one_before_does_not_pass(training: Training, base: BaseModel) -> None:
    with pytest.raises(GateNotPassed) as refused:
        trained_by(replace(PLAN, epochs=1, learning_rate=1e-5, previous=previous_of(training)), base)
    assert "loss_above_previous" in str(refused.value.facts["faults"])
    assert refused.value.facts["heldout_loss_previous"] == pytest.approx(
        training.trained.recipe.metrics.heldout_loss_adapter, rel=0.02
    )
    assert not any(module._forward_hooks for module in base.model.modules())


def test_a_warm_start_continues_from_the_version_before(training: Training, base: BaseModel) -> None:
    plan = replace(PLAN, learning_rate=5e-4, previous=previous_of(training, warm=True))
    metrics = trained_by(plan, base).trained.recipe.metrics
    before = training.trained.recipe.metrics.heldout_loss_adapter
    assert metrics.heldout_loss_previous == pytest.approx(before, rel=0.02)
    assert metrics.heldout_loss_adapter < before


def test_a_cohorts_adapter_is_gone_on_from_and_told_but_not_measured_against(
    training: Training, base: BaseModel
) -> None:
    identity = Start(student_id="cohort-5-adhd-visual", version=3, sha256="2" * 64)
    cohort = replace(previous_of(training, warm=True), to_beat=False, identity=identity, base_digest=base.digest)
    # Steps too small to come as far from a fresh adapter.
    recipe = trained_by(replace(PLAN, epochs=1, learning_rate=1e-9, previous=cohort), base).trained.recipe
    assert recipe.start == identity
    assert recipe.metrics.heldout_loss_previous is None
    assert recipe.metrics.heldout_loss_adapter < 1.02 * training.trained.recipe.metrics.heldout_loss_adapter


def test_a_version_of_other_base_weights_is_not_gone_on_from(training: Training, base: BaseModel) -> None:
    foreign = replace(previous_of(training, warm=True), base_digest="0" * 64)
    with pytest.raises(AdapterIncompatible):
        trained_by(replace(PLAN, previous=foreign), base)


def test_a_version_before_that_can_not_be_read_is_told(base: BaseModel) -> None:
    with pytest.raises(AdapterCorrupt):
        trained_by(replace(PLAN, previous=PreviousVersion(weights=b"no adapter", scaling=2.0)), base)


def test_training_leaves_the_base_model_as_it_was(base: BaseModel) -> None:
    tokens = torch.tensor([[1, 2, 3, 4]])
    before = base.model(tokens).logits
    trained_by(plan_of(commented(2)), base)
    assert torch.equal(base.model(tokens).logits, before)
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert not any(module._forward_hooks for module in base.model.modules())


def test_a_training_that_is_closed_ends_and_leaves_the_base_model_as_it_was(base: BaseModel) -> None:
    steps = train_adapter(plan_of(commented(3)), base, cache=DictReplyCache())
    next(step for step in steps if isinstance(step, Progress) and step.state is CloneState.FINE_TUNING)
    steps.close()
    assert not any(module._forward_hooks for module in base.model.modules())


def test_a_training_that_is_not_finite_has_diverged(base: BaseModel) -> None:
    with pytest.raises(TrainingDiverged):
        trained_by(plan_of(commented(3), epochs=3, learning_rate=math.inf), base)
    assert not any(module._forward_hooks for module in base.model.modules())


def test_too_few_examples_are_told_before_anything_is_trained(base: BaseModel) -> None:
    with pytest.raises(NoTrainableExamples):
        trained_by(plan_of(commented(1)), base)


def test_what_no_teacher_commented_on_is_distilled(base: BaseModel) -> None:
    plan = plan_of(baseline_of([graded(0), graded(1), graded(3)]))
    counts = trained_by(plan, base).trained.recipe.examples
    assert counts.feedback == 0
    assert counts.distilled >= 2
    assert counts.distilled + counts.dropped == counts.given == 3


def test_it_trains_in_the_other_precision_than_this_machines_too(base: BaseModel, cache_dir: Path) -> None:
    other: DtypeName = "float32" if base.dtype == torch.bfloat16 else "bfloat16"
    model = load_base(DEFAULT_BASE_MODEL, cache_dir=cache_dir, device="cpu", dtype=other)
    metrics = trained_by(plan_of(commented(3)), model).trained.recipe.metrics
    assert metrics.heldout_loss_adapter < metrics.heldout_loss_base
