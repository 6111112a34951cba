"""Trains the roles of one base model, in their order: the tutor on the base weights, the grader on the Main Brain."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.optimizer import heldout_loss
from cloning_server.learning.packing import packs_of
from cloning_server.learning.passes import Passes
from curriculum.lesson import Kind, Lesson
from curriculum.library import is_held_out, load_lessons
from curriculum.prompts import is_told_by_code
from curriculum.train import grader, tutor
from curriculum.train.grading_sets import (
    TRAINING_FILES,
    GradedAnswer,
    explained_answers,
    graded_lessons,
    made_answers,
    read_graded,
)
from curriculum.train.objectives import LabelObjective, ReplyObjective
from curriculum.train.role_training import RoleTraining, TrainedFactors, digest_of, fit, round_to_file
from curriculum.train.training import RoleSettings
from mesh.adapters.manifest import DEFAULT_SERVING
from mesh.lm.chat import Example
from mesh.lm.grading import LABELS
from mesh.lm.repetition import choose_run_length, run_tokens_of
from mesh.main_brain.role_manifest import Calibration

TUTOR_SETTINGS = RoleSettings(epochs=3, learning_rate=5e-4, batch=32)
GRADER_SETTINGS = RoleSettings(epochs=3, learning_rate=7e-4, batch=64)
_SMOOTHING = 0.05
# Longer examples are left out: essays of a few would take a third of the time, and no pupil writes them.
_MAX_TOKENS = 256
_GRADING, _EXPLANATIONS = "grading", "explanations"
_EXPLAINED, _EXPLAINED_DEV = "entailmentbank.train.jsonl", "entailmentbank.dev.jsonl"
_MEASURED = {
    "sciEntsBank unseen answers": "sciEntsBank.test-unseen-answers.jsonl",
    "beetle unseen answers": "beetle.test-unseen-answers.jsonl",
    "beetle unseen questions": "beetle.test-unseen-questions.jsonl",
    "saf unseen answers": "saf.english.unseen_answers.jsonl",
}


def train_tutor(training: RoleTraining) -> TrainedFactors:
    """Trains the tutor on all lessons that are not held out.

    Raises:
        InvalidLine, InvalidGradedAnswer: A line of the data has a fault; names file, line and field.
        TrainingDiverged: A loss or a gradient is not finite.
    """
    base, lessons = training.base, [lesson for lesson in load_lessons() if not is_told_by_code(lesson)]
    tokenizer = base.tokenizer
    learned = tutor.lessons_of_epoch([lesson for lesson in lessons if not is_held_out(lesson)])
    examples = tutor.lesson_examples(learned, tokenizer)
    plain = list(tutor.plain_examples(training.sets / _EXPLANATIONS / _EXPLAINED, tokenizer)) if training.sets else []
    passes = Passes(base.model)
    factors = fit(training, passes, [*examples, *plain], ReplyObjective(passes.layers.head_VH))
    weights = round_to_file(factors)
    held_out = [lesson for lesson in lessons if is_held_out(lesson)]
    replies = [
        tokenizer(lesson.reply, add_special_tokens=False)["input_ids"]
        for lesson in held_out
        if lesson.kind is not Kind.ASSESS
    ]
    return TrainedFactors(
        weights=weights,
        settings=training.settings,
        evaluation=_tutor_figures(training, passes, factors, held_out),
        data_digests={
            "lessons": digest_of(examples),
            **({"EntailmentBank": digest_of(plain)} if plain else {}),
        },
        serving=replace(DEFAULT_SERVING, unrepeated_run=choose_run_length(replies, run_tokens_of(tokenizer))),
        examples=len(examples) + len(plain),
    )


def train_grader(training: RoleTraining) -> TrainedFactors:
    """Trains the grader on the sets' answers, the lessons', and answers that are right or wrong for certain.

    Raises:
        InvalidGradedAnswer, InvalidLine: A line of the data has a fault; names file, line and field.
        TrainingDiverged: A loss or a gradient is not finite.
        IndistinctLabels: The tokenizer can't tell the labels apart.
    """
    base, answers = training.base, graded_answers(training.sets)
    # Read first: a fault in them would else be noticed after an hour.
    measured_sets = _measured_sets(training.sets)
    learned, held_out = grader.split_graded(answers)
    # Repeatable on purpose; it need not be hard to guess.
    draws = random.Random(training.settings.seed)  # noqa: S311
    learned += made_answers([answer for answer in learned if answer.source != "entailmentBank"], draws=draws)
    settings = training.settings
    # Each epoch tells the answers anew: with another reference, without the question, without the grade.
    judged_answers = [
        answer for epoch in range(settings.epochs) for answer in grader.judged(learned, seed=settings.seed + epoch)
    ]
    examples = [
        example
        for example in grader.grader_examples(judged_answers, base.tokenizer)
        if len(example.example.tokens) <= _MAX_TOKENS
    ]
    passes = Passes(base.model)
    tokens = grader.label_tokens(base.tokenizer)
    objective = LabelObjective(passes.layers.head_VH, tokens, smoothing=_SMOOTHING)
    factors = fit(replace(training, settings=replace(settings, epochs=1)), passes, examples, objective)
    weights = round_to_file(factors)
    calibrating = [grader.closest(answer) for answer in held_out]
    calibration = grader.calibrate(calibrating, grader.weigh(passes, factors, calibrating, base.tokenizer))
    return TrainedFactors(
        weights=weights,
        settings=settings,
        evaluation=_grader_figures(measured_sets, passes, factors, calibration, tokenizer=base.tokenizer),
        data_digests={"answers": digest_of(examples)} if examples else {},
        examples=len(examples) // max(1, settings.epochs),
        labels=LABELS,
        calibration=calibration,
    )


def graded_answers(sets: Path | None) -> list[GradedAnswer]:
    """Returns the answers that a grader may learn from: the lessons' that are not held out, and the sets'."""
    answers = list(graded_lessons([lesson for lesson in load_lessons() if not is_held_out(lesson)]))
    if sets is not None:
        answers += [answer for name in TRAINING_FILES for answer in read_graded(sets / _GRADING / name)]
        answers += explained_answers(sets / _EXPLANATIONS / _EXPLAINED)
    return answers


def _tutor_figures(
    training: RoleTraining, passes: Passes, factors: LoraFactors, lessons: Sequence[Lesson]
) -> dict[str, float]:
    """Mean nats per reply token of held-out lessons, and of plain text, for the base model and with the tutor."""
    tokenizer = training.base.tokenizer
    texts: dict[str, list[Example]] = {
        f"{kind} lessons": tutor.exact_examples([lesson for lesson in lessons if lesson.kind is kind], tokenizer)
        for kind in Kind
    }
    plain = training.sets / _EXPLANATIONS / _EXPLAINED_DEV if training.sets else None
    if plain and plain.is_file():
        texts["EntailmentBank dev"] = [text.example for text in tutor.plain_examples(plain, tokenizer)]
    figures: dict[str, float] = {}
    for suffix, adapter in (("base nats per token", None), ("nats per token", factors)):
        nats_of_lessons, tokens_of_lessons = 0.0, 0
        for name, examples in texts.items():
            if not examples:
                continue
            loss = heldout_loss(passes, packs_of(examples, 8, device=passes.device), adapter)
            figures[f"{name}: {suffix}"] = round(loss, 4)
            if name.endswith(" lessons"):
                tokens = sum(len(example.tokens) - example.reply_start for example in examples)
                nats_of_lessons, tokens_of_lessons = nats_of_lessons + loss * tokens, tokens_of_lessons + tokens
        figures[f"lessons: {suffix}"] = round(nats_of_lessons / max(1, tokens_of_lessons), 4)
    return figures


def _measured_sets(sets: Path | None) -> dict[str, list[GradedAnswer]]:
    """The answers that a grader is measured on, by the name of their figures; those of files that are there."""
    paths = {name: sets / _GRADING / file for name, file in _MEASURED.items()} if sets else {}
    answers = {name: list(read_graded(path)) for name, path in paths.items() if path.is_file()}
    return {name: members for name, members in answers.items() if members}


def _grader_figures(
    sets: Mapping[str, Sequence[GradedAnswer]],
    passes: Passes,
    factors: LoraFactors,
    calibration: Calibration,
    *,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, members in sets.items():
        answers = [grader.closest(answer) for answer in members]
        measured = grader.measure(answers, grader.weigh(passes, factors, answers, tokenizer), calibration)
        figures |= {f"{name}: {key}": value for key, value in measured.items()}
    return figures
