"""Verdicts: levels, the probabilities of labels, and the grading of a Main Brain that has no trained grader.

Such a verdict weighs the labels zero-shot, after three examples. With 135M parameters it hardly distinguishes right
answers from wrong ones; `benchmarks/assessment.py` measures any base model with and without its grader.

Knows nothing of engines: it makes prompts and interprets probabilities.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Self

from mesh.lm.chat import Prompt, Role, Turn
from mesh.lm.grading import CORRECT, INCORRECT, LABELS, PARTIALLY_CORRECT
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.criteria import Criteria, one_line
from mesh.tutoring.profile import StudentProfile

_INSTRUCTION = "You grade the answers of students. Compare the student's answer with what is asked."
# The model's judgement of an answer without content is its bias.
_ABSENT_ANSWER = "N/A"
# Otherwise a label that is never likely would decide the verdict by rounding noise.
_LEAST_BIAS = 1e-4


class Level(StrEnum):
    """Levels of understanding; each is a range of scores."""

    EXCELLENT = "excellent"
    GOOD = "good"
    DEVELOPING = "developing"
    BEGINNING = "beginning"

    @classmethod
    def of(cls, correctness: float) -> Self:
        """Returns the level of a score from 0 to 100."""
        return next(cls(level) for level, least in _LEAST_CORRECTNESS.items() if correctness >= least)

    @property
    def verdict(self) -> AnswerVerdict:
        """The verdict that feedback states."""
        return _VERDICTS[self]


_VERDICTS: Mapping[Level, AnswerVerdict] = MappingProxyType(
    {
        Level.EXCELLENT: AnswerVerdict.CORRECT,
        Level.GOOD: AnswerVerdict.CORRECT,
        Level.DEVELOPING: AnswerVerdict.PARTIALLY_CORRECT,
        Level.BEGINNING: AnswerVerdict.INCORRECT,
    }
)
_LEAST_CORRECTNESS: Mapping[Level, float] = MappingProxyType(
    {Level.EXCELLENT: 90.0, Level.GOOD: 70.0, Level.DEVELOPING: 40.0, Level.BEGINNING: 0.0}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probabilities:
    """The probability of each label of a verdict; they add up to 1."""

    correct: float
    partially_correct: float
    incorrect: float

    @classmethod
    def calibrated(cls, weights: Mapping[str, float], *, anchors: Sequence[Mapping[str, float]]) -> Self:
        """Returns the probabilities of the labels, corrected for the model's bias.

        A model favours some labels whatever the answer is. Contextual calibration (Zhao et al., "Calibrate Before Use:
        Improving Few-Shot Performance of Language Models", 2021, https://arxiv.org/abs/2102.09690) measures that on
        inputs whose label is known not to depend on them, and divides by it.

        Args:
            weights: Probabilities of `LABELS` for the answer.
            anchors: The same for each of the answers of `anchors_of`; their geometric mean is the bias.
        """
        ratios = [weights[label] / _geometric_mean([anchor[label] for anchor in anchors]) for label in LABELS]
        correct, partially_correct, incorrect = (ratio / sum(ratios) for ratio in ratios)
        return cls(correct=correct, partially_correct=partially_correct, incorrect=incorrect)

    @classmethod
    def decided(cls, verdict: AnswerVerdict) -> Self:
        """Returns the probabilities of a verdict that is certain."""
        return cls(
            correct=float(verdict is AnswerVerdict.CORRECT),
            partially_correct=float(verdict is AnswerVerdict.PARTIALLY_CORRECT),
            incorrect=float(verdict not in {AnswerVerdict.CORRECT, AnswerVerdict.PARTIALLY_CORRECT}),
        )

    @property
    def correctness(self) -> float:
        """The expected score, 0 to 100, where a partially correct answer scores half."""
        return 100 * (self.correct + 0.5 * self.partially_correct)


def anchors_of(criteria: Criteria) -> tuple[str, ...]:
    """Returns the answers that measure the model's bias: one without content and, if known, a correct one.

    With an anchor at either end, an answer halfway between them, as the model rates it, scores 50. Without the correct
    one, every answer of a usual length would rate better than the one without content.
    """
    return (_ABSENT_ANSWER, criteria.reference_answer) if criteria.reference_answer else (_ABSENT_ANSWER,)


def prompt_for(answer: str, criteria: Criteria) -> Prompt:
    """Returns the prompt that a Main Brain without a grader continues with one of `LABELS`."""
    turns = (*_EXAMPLES, _request(criteria, answer))
    return Prompt(profile=StudentProfile(), turns=turns, instruction=_INSTRUCTION)


def _request(criteria: Criteria, answer: str) -> Turn:
    return Turn(role=Role.STUDENT, text=f"{criteria.described}\nStudent's answer: {one_line(answer)}")


def _example(question: str, reference_answer: str, answer: str, label: str) -> tuple[Turn, Turn]:
    criteria = Criteria(question=question, reference_answer=reference_answer)
    return _request(criteria, answer), Turn(role=Role.TUTOR, text=label)


# One for each label: without them the default base model does not answer with labels at all.
_EXAMPLES = (
    *_example("Why does ice float on water?", "Ice is less dense than water.", "Because ice is cold.", INCORRECT),
    *_example(
        "Why do we see lightning before we hear thunder?",
        "Light travels faster than sound.",
        "Because light is quicker than the sound.",
        CORRECT,
    ),
    *_example(
        "What do plants need to make food?",
        "Plants need sunlight, water and carbon dioxide.",
        "They need water.",
        PARTIALLY_CORRECT,
    ),
)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(max(value, _LEAST_BIAS)) for value in values) / len(values))
