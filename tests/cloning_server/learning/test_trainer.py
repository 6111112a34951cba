"""The trainer: the progress that it yields, the adapter that it trains, and that the base model stays the same.

On the real base model where the test is about what is learned; on a small random one where it is about the procedure.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cloning_server.clone import CloneState
from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.examples.examples import ExampleSet, complete_examples, draft_examples, split_examples
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import packs_of
from cloning_server.learning.passes import Passes
from cloning_server.learning.trainer import fine_tune, run_training
from cloning_server.learning.tuning import SCALES
from cloning_server.training import PreviousVersion, Progress, TrainingPlan
from mesh.adapters.inspection import AdapterLimits, inspect
from mesh.adapters.manifest import Start
from mesh.errors import AdapterCorrupt, AdapterIncompatible, GateNotPassed, NoTrainableExamples, TrainingDiverged
from mesh.lm.chat import Example
from mesh.lm.lora import from_safetensors
from mesh.main_brain.base import BaseModel, DtypeName, load_base
from testing.lessons import FEEDBACK, ITEMS, PROFILE, DictReplyCache, baseline_of, commented, graded, plan_of
from testing.trainings import Training, train_alone

TOKENS = torch.tensor([[1, 2, 3, 4]])
PLAN = plan_of(commented(5), epochs=3)

Train = Callable[[TrainingPlan], Training]


@pytest.fixture(scope="module")
def train(small_base: BaseModel, small_passes: Passes) -> Train:
    return partial(train_alone, base=small_base, passes=small_passes)


@pytest.fixture(scope="module")
def training(train: Train) -> Training:
    return train(PLAN)


@pytest.fixture(scope="module")
def real_training(base: BaseModel, passes: Passes) -> Training:
    return train_alone(PLAN, base, passes)


def previous_of(training: Training, *, warm: bool = False) -> PreviousVersion:
    adapter = training.adapter
    return PreviousVersion(weights=adapter.weights, scaling=adapter.recipe.scaling, warm=warm)


def split_of(plan: TrainingPlan, base: BaseModel) -> tuple[Sequence[tuple[str, Example]], ExampleSet]:
    """The examples of a plan that are a teacher's feedback, and their split."""
    completed, counts = complete_examples(
        draft_examples(plan.baseline, compute_policy(plan.baseline)), {}, base.tokenizer
    )
    return completed, split_examples(completed, counts, heldout_share=plan.heldout_share, seed=plan.seed)


def test_the_held_out_loss_falls_below_the_base_models(real_training: Training) -> None:
    metrics = real_training.adapter.recipe.metrics
    assert metrics.heldout_loss_adapter < 0.95 * metrics.heldout_loss_base


def test_the_progress_of_a_state_goes_from_0_to_1_with_a_message_per_step(training: Training) -> None:
    states = [(state, list(items)) for state, items in groupby(training.progress, key=lambda progress: progress.state)]
    assert [state for state, _ in states] == [
        CloneState.CREATING_ADAPTER,
        CloneState.FINE_TUNING,
        CloneState.OPTIMIZING,
    ]
    for _, items in states:
        fractions = [progress.fraction for progress in items]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    # Three times each item in one situation, a written reply and five common questions, in batches of two; and the
    # message before the first.
    assert len(states[1][1]) == 1 + training.adapter.recipe.metrics.train_steps == 17


def test_no_message_holds_a_word_of_the_student_or_teacher(training: Training) -> None:
    messages = " ".join(progress.message for progress in training.progress)
    assert not any(text in messages for item in ITEMS for text in item)
    assert "Almost" not in messages


def test_the_recipe_tells_how_the_version_was_trained(real_training: Training, base: BaseModel) -> None:
    recipe = real_training.adapter.recipe
    counts = recipe.examples
    assert (counts.given, counts.feedback, counts.dropped) == (5, 5, 0)
    # Beside the feedback, an explanation of each question, a right answer to it, and a hint or a way to check an answer
    # of some.
    assert 10 <= counts.distilled <= 17
    assert counts.train + counts.heldout == counts.feedback + counts.distilled
    assert 1 <= counts.heldout <= 4
    assert (recipe.clone_id, recipe.base_model, recipe.base_digest) == ("clone1", base.name, base.digest)
    assert (recipe.profile.grade, recipe.profile.disability) == (PROFILE.grade, "adhd")
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.lora.target_modules) == (16, 32.0, ("q_proj", "v_proj"))
    assert recipe.policy is not None
    assert (recipe.policy.writing.grade, recipe.policy.mistakes.judged) == (PROFILE.grade, 5)
    assert recipe.scale in SCALES
    assert 0.2 <= recipe.serving.temperature <= 1.0


def test_the_adapter_is_sound_and_not_zero(real_training: Training) -> None:
    weights = real_training.adapter.weights
    inspect(weights, lora=real_training.adapter.recipe.lora, limits=AdapterLimits())
    assert any(bool(tensor.any()) for name, tensor in from_safetensors(weights).items() if "lora_B" in name)
    assert len(weights) <= 4 * 1024 * 1024


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(train: Train) -> None:
    plan = plan_of(commented(3))
    first, second, other = (train(replace(plan, seed=seed)).adapter for seed in (7, 7, 8))
    assert second.weights == first.weights
    assert second.recipe.data_digest == first.recipe.data_digest
    assert other.weights != first.weights


@pytest.mark.slow
def test_on_the_real_base_model_the_same_seed_gives_the_same_bytes(base: BaseModel, passes: Passes) -> None:
    first, second = (train_alone(plan_of(commented(2)), base, passes).adapter for _ in range(2))
    assert second.weights == first.weights


def test_held_out_examples_are_never_trained_on(train: Train, small_base: BaseModel) -> None:
    plan = plan_of(commented(3))
    completed, split = split_of(plan, small_base)
    heldout = next(index for index, (_, example) in enumerate(completed) if example in split.heldout)
    changed = plan_of(commented(3, feedback={heldout: f"Quite another reply. {FEEDBACK}"}))
    adapter, adapter_of_changed = train(plan).adapter, train(changed).adapter
    assert adapter.recipe.data_digest != adapter_of_changed.recipe.data_digest
    assert adapter.weights == adapter_of_changed.weights


def test_it_stops_when_the_held_out_loss_rises_and_keeps_the_best(base: BaseModel, passes: Passes) -> None:
    plan = plan_of(commented(3), epochs=150, learning_rate=1e-2)
    _, examples = split_of(plan, base)
    fine_tuned = fine_tune(plan, base, passes, examples)
    assert 1 < fine_tuned.steps < plan.epochs
    heldout = packs_of(examples.heldout, 2, device=base.device)
    best = LoraFactors.of(base.model, fine_tuned.state, scaling=plan.alpha / plan.rank)
    assert heldout_loss(passes, heldout, best) < heldout_loss(passes, heldout, None)


def test_a_version_that_is_no_better_than_the_one_before_does_not_pass(training: Training, train: Train) -> None:
    with pytest.raises(GateNotPassed) as refused:
        train(replace(PLAN, epochs=1, learning_rate=1e-5, previous=previous_of(training)))
    assert "loss_above_previous" in str(refused.value.facts["faults"])
    assert refused.value.facts["heldout_loss_previous"] == pytest.approx(
        training.adapter.recipe.metrics.heldout_loss_adapter, rel=0.02
    )


def test_a_warm_start_continues_from_the_version_before(training: Training, train: Train) -> None:
    metrics = train(replace(PLAN, learning_rate=5e-4, previous=previous_of(training, warm=True))).adapter.recipe.metrics
    before = training.adapter.recipe.metrics.heldout_loss_adapter
    assert metrics.heldout_loss_previous == pytest.approx(before, rel=0.02)
    assert metrics.heldout_loss_adapter < before


def test_training_continues_from_a_cohorts_adapter_but_is_not_compared_with_it(
    training: Training, train: Train, small_base: BaseModel
) -> None:
    identity = Start(student_id="cohort-5-adhd-visual", version=3, sha256="2" * 64)
    cohort = replace(previous_of(training, warm=True), to_beat=False, identity=identity, base_digest=small_base.digest)
    # Steps so small that the loss is the cohort's.
    recipe = train(replace(PLAN, epochs=1, learning_rate=1e-9, previous=cohort)).adapter.recipe
    assert recipe.start == identity
    assert recipe.metrics.heldout_loss_previous is None
    loss, base_loss = training.adapter.recipe.metrics.heldout_loss_adapter, recipe.metrics.heldout_loss_base
    assert recipe.metrics.heldout_loss_adapter < loss + 0.02 * (base_loss - loss)


def test_training_does_not_continue_from_a_version_of_other_base_weights(training: Training, train: Train) -> None:
    foreign = replace(previous_of(training, warm=True), base_digest="0" * 64)
    with pytest.raises(AdapterIncompatible):
        train(replace(PLAN, previous=foreign))


def test_a_previous_version_that_can_not_be_read_is_reported(train: Train) -> None:
    with pytest.raises(AdapterCorrupt):
        train(replace(PLAN, previous=PreviousVersion(weights=b"no adapter", scaling=2.0)))


def assert_unchanged(base: BaseModel, logits: Tensor) -> None:
    assert torch.equal(base.model(TOKENS).logits, logits)
    assert not any(weight.requires_grad for weight in base.model.parameters())
    assert not any(module._forward_hooks for module in base.model.modules())


def test_training_does_not_change_the_base_model(small_base: BaseModel, train: Train) -> None:
    before = small_base.model(TOKENS).logits
    train(plan_of(commented(2)))
    assert_unchanged(small_base, before)


class _KnowsAll(DictReplyCache):
    """Every reply was tried, and none was any use."""

    def get_many(self, keys: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(keys, "")


def test_a_training_that_is_closed_ends_and_does_not_change_the_base_model(
    small_base: BaseModel, small_passes: Passes
) -> None:
    before = small_base.model(TOKENS).logits
    # All replies are the teacher's feedback or known to be none, so that it requests nothing before.
    responses = [graded(index, reference_answer="", teacher_feedback="Not right yet.") for index in (0, 2, 3)]
    run = run_training(plan_of(baseline_of(responses)), small_base, small_passes, cache=_KnowsAll())
    next(item for item in run if isinstance(item, Progress) and item.state is CloneState.FINE_TUNING)
    run.close()
    assert_unchanged(small_base, before)


def test_a_training_that_is_not_finite_has_diverged(small_base: BaseModel, train: Train) -> None:
    before = small_base.model(TOKENS).logits
    with pytest.raises(TrainingDiverged):
        train(plan_of(commented(3), epochs=3, learning_rate=math.inf))
    assert_unchanged(small_base, before)


def test_too_few_examples_are_reported_before_anything_is_trained(train: Train) -> None:
    with pytest.raises(NoTrainableExamples):
        train(plan_of(commented(1)))


def test_responses_without_feedback_are_distilled(base: BaseModel, passes: Passes) -> None:
    plan = plan_of(baseline_of([graded(0), graded(1), graded(3)]))
    counts = train_alone(plan, base, passes).adapter.recipe.examples
    assert counts.feedback == 0
    assert (counts.given, counts.dropped) == (3, 0)
    # Four for each, and a hint of some.
    assert 12 <= counts.distilled == counts.train + counts.heldout <= 15


def test_it_trains_in_the_precision_that_is_not_this_machines_default_too(base: BaseModel, small_folder: Path) -> None:
    other: DtypeName = "float32" if base.dtype == torch.bfloat16 else "bfloat16"
    model = load_base(str(small_folder), cache_dir=small_folder.parent, device="cpu", dtype=other)
    metrics = train_alone(plan_of(commented(3)), model, Passes(model.model)).adapter.recipe.metrics
    assert metrics.heldout_loss_adapter < metrics.heldout_loss_base
