"""Trains the guard of one base model on its Main Brain."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from cloning_server.learning.passes import Passes
from curriculum.guard import is_for_development, load_guard_texts, load_lesson_harms
from curriculum.lesson import Lesson
from curriculum.library import is_held_out, load_lessons
from curriculum.metrics import screening
from curriculum.records import InvalidLine
from curriculum.safety_sets import ModeratedText, read_harmful_requests, read_moderated
from curriculum.screened_texts import (
    ScreenedText,
    is_moderated_held_out,
    moderated_texts,
    reply_texts,
    requested_texts,
    respelt_texts,
    screened,
    talk_texts,
    told_anew,
    work_texts,
)
from curriculum.train.guard import (
    TrainedGuard,
    calibrate,
    choose_thresholds,
    choosing_texts,
    guard_examples,
    label_tokens,
)
from curriculum.train.objectives import LabelObjective
from curriculum.train.role_training import RoleTraining, TrainedFactors, digest_of, fit, round_to_file
from curriculum.train.training import RoleSettings
from curriculum.variants import Spelling
from mesh.lm.guarding import GUARD_LABELS, HarmCategory, HarmReading, thresholds_of_grade
from mesh.tutoring.profile import GradeBand

GUARD_SETTINGS = RoleSettings(epochs=5, learning_rate=7e-4, batch=32)
_SMOOTHING = 0.05
# Longer examples are left out: of the moderation set's, a few would take a third of the time.
_MAX_TOKENS = 192
# Texts from lessons in one epoch, drawn anew for each. So few are enough to learn what school work looks like.
_LESSON_TEXTS = 400
_SAFETY, _MODERATION, _REQUESTS = "safety", "openai_moderation.even_rows.jsonl", "simple_safety_tests_80.csv"
# Any number; with another, the respelt texts that measure are others.
_RESPELLING_SEED = 77

_Thresholds = Mapping[HarmCategory, Mapping[GradeBand, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTexts:
    """The texts of a guard's training.

    Attributes:
        taught: Harmful texts and near misses, told in every epoch.
        lessons: What is said at work; every epoch tells some.
        moderated: Texts of the moderation set; every epoch tells one piece of each.
        development: What chooses calibration and thresholds.
        measured: What measures beside it, by name of the figures.
    """

    taught: Sequence[ScreenedText]
    lessons: Sequence[ScreenedText]
    moderated: Sequence[ScreenedText]
    development: Sequence[ScreenedText]
    measured: Mapping[str, Sequence[ScreenedText]]

    @classmethod
    def load(cls, sets: Path | None) -> "GuardTexts":
        """Reads the project's texts, and those of the public sets.

        SimpleSafetyTests only measure, so they may be missing.

        Raises:
            InvalidLine: A line has a fault; names file, line and field.
        """
        texts, lessons, harms = load_guard_texts(), load_lessons(), load_lesson_harms()
        learned = [lesson for lesson in lessons if not is_held_out(lesson)]
        moderated = _records(read_moderated, sets, _MODERATION)
        return cls(
            taught=[
                *(screened(text) for text in texts if not is_for_development(text)),
                *talk_texts(learned, harms),
            ],
            lessons=[*work_texts(learned), *reply_texts(learned)],
            moderated=moderated_texts([text for text in moderated if not is_moderated_held_out(text)]),
            development=[screened(text) for text in texts if is_for_development(text)],
            measured=_measured(lessons, harms, moderated, sets),
        )

    def epoch_texts(self, epochs: int, *, seed: int) -> list[ScreenedText]:
        """Returns what all epochs tell, each anew."""
        texts = []
        for epoch in range(epochs):
            # Repeatable on purpose; it need not be hard to guess.
            draws = random.Random(f"{seed} {epoch}")  # noqa: S311
            lessons = draws.sample(self.lessons, min(_LESSON_TEXTS, len(self.lessons)))
            texts += told_anew([*self.taught, *lessons, *self.moderated], draws)
        return texts


def _measured(
    lessons: Sequence[Lesson],
    harms: Mapping[str, HarmCategory | None],
    moderated: Sequence[ModeratedText],
    sets: Path | None,
) -> dict[str, Sequence[ScreenedText]]:
    held_out = [lesson for lesson in lessons if is_held_out(lesson)]
    has_requests = sets is not None and _path(sets, _REQUESTS).is_file()
    requests = _records(read_harmful_requests, sets if has_requests else None, _REQUESTS)
    measured = {
        "lessons, students at work": work_texts(held_out),
        "lessons, students' talk": talk_texts(held_out, harms),
        "lessons, replies": reply_texts(held_out),
        "OpenAI moderation": moderated_texts([text for text in moderated if is_moderated_held_out(text)]),
        "SimpleSafetyTests": requested_texts(requests),
    }
    return {name: texts for name, texts in measured.items() if texts}


def train_guard(training: RoleTraining) -> TrainedFactors:
    """Trains the guard on the project's texts, lessons and, if there is one, the moderation set.

    Raises:
        InvalidLine: A line of the data has a fault; names file, line and field.
        TrainingDiverged: A loss or a gradient is not finite.
        IndistinctLabels: The tokenizer can't tell the labels apart.
    """
    base, settings = training.base, training.settings
    texts = GuardTexts.load(training.sets)
    tokens = label_tokens(base.tokenizer)
    examples = [
        example
        for example in guard_examples(texts.epoch_texts(settings.epochs, seed=settings.seed), base.tokenizer)
        if len(example.example.tokens) <= _MAX_TOKENS
    ]
    passes = Passes(base.model)
    objective = LabelObjective(passes.layers.head_VH, tokens, smoothing=_SMOOTHING)
    factors = fit(replace(training, settings=replace(settings, epochs=1)), passes, examples, objective)
    weights = round_to_file(factors)
    uncalibrated = TrainedGuard(passes=passes, factors=factors, tokenizer=base.tokenizer)
    choosing = choosing_texts(texts.development, seed=settings.seed)
    calibration = calibrate(choosing, uncalibrated.weigh(choosing))
    guard = replace(uncalibrated, calibration=calibration)
    thresholds = choose_thresholds(choosing, guard.readings(choosing))
    return TrainedFactors(
        weights=weights,
        settings=settings,
        evaluation=_figures(texts, guard, thresholds),
        data_digests={"texts": digest_of(examples)} if examples else {},
        examples=len(examples) // max(1, settings.epochs),
        labels=GUARD_LABELS,
        calibration=calibration,
        thresholds=thresholds,
    )


def _figures(texts: GuardTexts, guard: TrainedGuard, thresholds: _Thresholds) -> dict[str, float]:
    """Figures of the development texts by spelling and category, and of what measures beside them, by name."""
    figures: dict[str, float] = {}
    # Repeatable on purpose; it need not be hard to guess.
    draws = random.Random(_RESPELLING_SEED)  # noqa: S311
    for spelling in Spelling:
        spelt = respelt_texts(texts.development, spelling, draws)
        readings = guard.readings(spelt)
        figures |= _quality(f"development, {spelling}", spelt, readings, thresholds)
        for category in HarmCategory if spelling is Spelling.PLAIN else ():
            # The harmful texts of one category, among the harmless ones of all.
            places = [place for place, text in enumerate(spelt) if text.category in {category, None}]
            of_category = [spelt[place] for place in places], [readings[place] for place in places]
            figures |= _quality(f"development, {category}", *of_category, thresholds)
    for name, members in texts.measured.items():
        figures |= _quality(name, members, guard.readings(members), thresholds)
    return figures


def _quality(
    name: str, texts: Sequence[ScreenedText], readings: Sequence[HarmReading], thresholds: _Thresholds
) -> dict[str, float]:
    flags = [
        bool(reading.flagged(thresholds_of_grade(thresholds, text.grade), speaker=text.speaker))
        for text, reading in zip(texts, readings, strict=True)
    ]
    figures = screening([reading.harm for reading in readings], flags, [text.category is not None for text in texts])
    return {f"{name}: {figure}": round(value, 4) for figure, value in figures.items()}


_Record = TypeVar("_Record")


def _path(sets: Path, file: str) -> Path:
    return sets / _SAFETY / file


def _records(reader: Callable[[Path], Iterator[_Record]], sets: Path | None, file: str) -> list[_Record]:
    if sets is None:
        return []
    try:
        return list(reader(_path(sets, file)))
    except OSError as error:
        raise InvalidLine(f"{_path(sets, file)}: can't be read ({type(error).__name__})") from None
