"""What is known of a student's answer before a tutor replies: a verdict, the right answer, and computed facts.

They stand in the system turn, where nothing that a student writes can forge them. A reply judges only what they say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class AnswerVerdict(StrEnum):
    """What is known of an answer."""

    CORRECT = "correct"
    PARTIALLY_CORRECT = "partially_correct"
    INCORRECT = "incorrect"
    BLANK = "blank"
    OFF_TOPIC = "off_topic"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerAssessment:
    """An assessed answer.

    Attributes:
        verdict: What is known of the answer.
        reference_answer: A right answer; may be empty.
    """

    verdict: AnswerVerdict
    reference_answer: str = ""


_VERDICT_SENTENCES: Mapping[AnswerVerdict, str] = MappingProxyType(
    {
        AnswerVerdict.CORRECT: "The student's answer is right. Say so first.",
        AnswerVerdict.PARTIALLY_CORRECT: "The student's answer is partly right. Say so first.",
        AnswerVerdict.INCORRECT: "The student's answer is wrong. Say so first, kindly.",
        AnswerVerdict.BLANK: "The student gave no answer.",
        AnswerVerdict.OFF_TOPIC: "The student's answer is about something else.",
    }
)


def describe_assessment(assessment: AnswerAssessment) -> str:
    """Returns an assessment as sentences for the system turn."""
    verdict = _VERDICT_SENTENCES[assessment.verdict]
    reference = " ".join(assessment.reference_answer.split())
    return f"{verdict} Right answer: {_end_sentence(reference)}" if reference else verdict


def describe_facts(facts: tuple[str, ...]) -> str:
    """Returns computed facts, such as `3/4 + 1/8 = 7/8`, as sentences for the system turn."""
    return " ".join(f"Fact: {_end_sentence(fact)}" for fact in facts)


def _end_sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
