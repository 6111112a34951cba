"""Grading: what an answer is judged by, the labels of a verdict, and what their probabilities mean.

How far a verdict can be trusted depends on the base model: the default one, of 135M parameters, hardly tells right
answers from wrong ones, which `benchmarks/assessment.py` measures for any other.

Knows nothing of engines: it says what to ask and reads what was answered.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, Self

from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

# Labels that a reply may begin with. Each word's first token differs from the others'.
CORRECT, PARTIALLY_CORRECT, INCORRECT = "Correct", "Partially correct", "Incorrect"
LABELS = (CORRECT, PARTIALLY_CORRECT, INCORRECT)

_INSTRUCTION = "You grade the answers of students. Compare the student's answer with what is asked."
# What there is to say of an answer without content is the model's bias.
_ABSENT_ANSWER = "N/A"
# A label that is never likely would otherwise decide the verdict by the noise of its last bits.
_LEAST_BIAS = 1e-4


class Level(StrEnum):
    """How far a student has come; follows from the correctness."""

    EXCELLENT = "excellent"
    GOOD = "good"
    DEVELOPING = "developing"
    BEGINNING = "beginning"

    @classmethod
    def of(cls, correctness: float) -> Self:
        """The level of a correctness from 0 to 100."""
        return next(cls(level) for level, least in _LEAST_CORRECTNESS.items() if correctness >= least)


_LEAST_CORRECTNESS: Mapping[Level, float] = MappingProxyType(
    {Level.EXCELLENT: 90.0, Level.GOOD: 70.0, Level.DEVELOPING: 40.0, Level.BEGINNING: 0.0}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What an answer is judged by; empty texts are not known, and at least one of `TEXTS` is.

    Attributes:
        grade: One of `mesh.tutoring.profile.GRADES`, or None.
        subject: In a few words.
        learning_objective: What the student should have understood.
        question: What was asked.
        reference_answer: A correct answer.
        rubric: How to grade.
    """

    TEXTS: ClassVar = ("learning_objective", "question", "reference_answer", "rubric")

    grade: str | None = None
    subject: str = ""
    learning_objective: str = ""
    question: str = ""
    reference_answer: str = ""
    rubric: str = ""

    @property
    def described(self) -> str:
        """The criteria as lines of a prompt."""
        lines = {
            "Grade": self.grade or "",
            "Subject": self.subject,
            "Learning objective": self.learning_objective,
            "Rubric": self.rubric,
            "Question": self.question,
            "Reference answer": self.reference_answer,
        }
        return "\n".join(f"{name}: {one_line(text)}" for name, text in lines.items() if text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probabilities:
    """How likely each label of a verdict is; they add up to 1."""

    correct: float
    partially_correct: float
    incorrect: float

    @classmethod
    def calibrated(cls, weights: Mapping[str, float], *, anchors: Sequence[Mapping[str, float]]) -> Self:
        """The probabilities of the labels, less the model's bias towards some of them.

        A model favours some labels whatever it reads. Contextual calibration (Zhao et al., "Calibrate Before Use:
        Improving Few-Shot Performance of Language Models", 2021, https://arxiv.org/abs/2102.09690) measures that on
        inputs whose label is known not to depend on them, and divides by it.

        Args:
            weights: Probabilities of `LABELS` for the answer.
            anchors: The same for each of `anchors_of` the criteria; their geometric mean is the bias.
        """
        ratios = [weights[label] / _geometric_mean([anchor[label] for anchor in anchors]) for label in LABELS]
        correct, partially_correct, incorrect = (ratio / sum(ratios) for ratio in ratios)
        return cls(correct=correct, partially_correct=partially_correct, incorrect=incorrect)

    @property
    def correctness(self) -> float:
        """The expected score, 0 to 100, where a partially correct answer scores half."""
        return 100 * (self.correct + 0.5 * self.partially_correct)


def anchors_of(criteria: Criteria) -> tuple[str, ...]:
    """The answers by which the model's bias is measured: one without content and, if known, a right one.

    With an anchor at either end, an answer that the model likes as much as halfway between them scores evenly. Without
    the right one, every answer that has the length of an answer seems better than none.
    """
    return (_ABSENT_ANSWER, criteria.reference_answer) if criteria.reference_answer else (_ABSENT_ANSWER,)


def prompt_for(answer: str, criteria: Criteria) -> Prompt:
    """What the base model reads before it begins its reply with one of `LABELS`."""
    turns = (*_SHOWN, _asked(criteria, answer))
    return Prompt(profile=StudentProfile(), turns=turns, instruction=_INSTRUCTION)


def one_line(text: str) -> str:
    """The text without line breaks, so that no answer can write lines of the prompt."""
    return " ".join(text.split())


def _asked(criteria: Criteria, answer: str) -> Turn:
    return Turn(role=Role.STUDENT, text=f"{criteria.described}\nStudent's answer: {one_line(answer)}")


def _shown(question: str, reference_answer: str, answer: str, label: str) -> tuple[Turn, Turn]:
    criteria = Criteria(question=question, reference_answer=reference_answer)
    return _asked(criteria, answer), Turn(role=Role.TUTOR, text=label)


# One of each label: without them the default base model does not answer with labels at all.
_SHOWN = (
    *_shown("Why does ice float on water?", "Ice is less dense than water.", "Because ice is cold.", INCORRECT),
    *_shown(
        "Why do we see lightning before we hear thunder?",
        "Light travels faster than sound.",
        "Because light is quicker than the sound.",
        CORRECT,
    ),
    *_shown(
        "What do plants need to make food?",
        "Plants need sunlight, water and carbon dioxide.",
        "They need water.",
        PARTIALLY_CORRECT,
    ),
)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(max(value, _LEAST_BIAS)) for value in values) / len(values))
