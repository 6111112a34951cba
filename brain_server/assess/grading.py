"""Grading: the criteria of an answer, the labels of a verdict, and how their probabilities become a score.

How reliable a verdict is depends on the base model. The default one, with 135M parameters, hardly distinguishes correct
answers from wrong ones; `benchmarks/assessment.py` measures any base model.

Knows nothing of engines: it makes prompts and interprets probabilities.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import ClassVar, Self

from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile

# Labels that a reply may begin with. The first token of each differs from that of the others.
CORRECT, PARTIALLY_CORRECT, INCORRECT = "Correct", "Partially correct", "Incorrect"
LABELS = (CORRECT, PARTIALLY_CORRECT, INCORRECT)

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


_LEAST_CORRECTNESS: Mapping[Level, float] = MappingProxyType(
    {Level.EXCELLENT: 90.0, Level.GOOD: 70.0, Level.DEVELOPING: 40.0, Level.BEGINNING: 0.0}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What an answer is judged by. An empty text is unknown; at least one of `TEXTS` is known.

    Attributes:
        grade: One of `mesh.tutoring.profile.GRADES`, or None.
        subject: The subject, in a few words.
        learning_objective: What the student should have understood.
        question: The question that the student answers.
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
        """The criteria as lines for a prompt."""
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
    """Returns the prompt that the base model continues with one of `LABELS`."""
    turns = (*_EXAMPLES, _request(criteria, answer))
    return Prompt(profile=StudentProfile(), turns=turns, instruction=_INSTRUCTION)


def one_line(text: str) -> str:
    """Returns the text without line breaks, so that no answer can add lines to the prompt."""
    return " ".join(text.split())


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
