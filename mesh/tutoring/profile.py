"""What AIVO knows of a student when it replies: grade, subject, learning preference and disability.

Knows nothing of models or prompts, so that the servers' edges can use it without torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from unicodedata import normalize

GRADES = ("K", *(str(year) for year in range(1, 13)))


class GradeBand(StrEnum):
    """Grades that are taught alike."""

    K_2 = "K-2"
    G3_5 = "3-5"
    G6_8 = "6-8"
    G9_12 = "9-12"

    @classmethod
    def of(cls, grade: str) -> Self:
        """Returns the band of one of `GRADES`."""
        index = GRADES.index(grade)
        return cls(next(band for band, last in (("K-2", 2), ("3-5", 5), ("6-8", 8), ("9-12", 12)) if index <= last))


class LearningStyle(StrEnum):
    """A preference for how things are presented, as the student or their teacher states it.

    Matching teaching to a style has not been shown to raise learning (Pashler, McDaniel, Rohrer and Bjork, "Learning
    Styles: Concepts and Evidence", 2008); it is kept as a preference, and decides presentation alone.
    """

    VISUAL = "visual"
    AUDITORY = "auditory"
    READING = "reading"
    KINESTHETIC = "kinesthetic"
    STRUCTURED = "structured"


class Disability(StrEnum):
    """A disability with accommodations of its own; see `mesh.tutoring.teaching`."""

    ADHD = "adhd"
    AUTISM = "autism"
    DYSLEXIA = "dyslexia"
    ANXIETY = "anxiety"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentProfile:
    """The part of a student's context that shapes prompts. Holds neither name nor id: those never reach a model.

    Attributes:
        grade: One of `GRADES`, or None if unknown.
        subject: The subject of the conversation in a few words; may be empty.
        learning_style: The stated preference, or None.
        disability: The disability to accommodate, or None.
    """

    grade: str | None = None
    subject: str = ""
    learning_style: LearningStyle | None = None
    disability: Disability | None = None


def parse_profile(
    *, grade: str = "", subject: str = "", learning_style: str = "", disability: str = ""
) -> StudentProfile:
    """Returns the profile that four words name; an empty word means unknown.

    Case and surrounding blank space do not matter (`k` is `K`). Line breaks in a subject become spaces.

    Args:
        grade: One of `GRADES`.
        subject: Free text.
        learning_style: One of `LearningStyle`.
        disability: One of `Disability`.

    Raises:
        ValueError: A word is not accepted. The contract has the same words, so that requests fail before.
    """
    grade, style, need = grade.strip().upper(), learning_style.strip().lower(), disability.strip().lower()
    if grade and grade not in GRADES:
        raise ValueError(f"the grade must be one of {', '.join(GRADES)}")
    return StudentProfile(
        grade=grade or None,
        subject=" ".join(subject.split()),
        learning_style=LearningStyle(style) if style else None,
        disability=Disability(need) if need else None,
    )


def parse_interests(words: Iterable[str]) -> tuple[str, ...]:
    """Returns interests without blank space around and between their words, and without repeats in another case."""
    interests: dict[str, str] = {}
    for interest in words:
        # Texts that look the same may be composed of other characters.
        plain = normalize("NFC", " ".join(interest.split()))
        interests.setdefault(plain.casefold(), plain)
    return tuple(interests.values())
