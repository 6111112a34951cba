"""A lesson: one conversation with a student, and the reply that a good tutor gives.

Lessons are JSON lines, parsed strictly: a fault names its file, line and field.
"""

import json
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from curriculum.records import read_records
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.profile import Disability, GradeBand, LearningStyle, StudentProfile

Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


# Common Core, NGSS, C3 (social studies), CASEL and national health education (feelings), ISTE (digital citizenship).
STANDARD = (
    r"^(?:CCSS\.MATH\.CONTENT\.[\w.-]+|CCSS\.MATH\.PRACTICE\.MP\d|CCSS\.ELA-LITERACY\.[\w.-]+|NGSS\.[\w-]+"
    r"|C3\.D\d\.[\w.-]+|NHES\.\d(?:\.\d+)*|CASEL\.[A-Z-]+|ISTE\.[\w.]+)$"
)


class Kind(StrEnum):
    """What the student needs."""

    EXPLAIN = "explain"
    FEEDBACK = "feedback"
    ASSESS = "assess"
    HINT = "hint"
    WORKED = "worked"
    FEELINGS = "feelings"
    BOUNDARIES = "boundaries"


class Subject(StrEnum):
    """The subject of a lesson."""

    MATHEMATICS = "mathematics"
    READING_AND_WRITING = "reading and writing"
    SCIENCE = "science"
    SOCIAL_STUDIES = "social studies"


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LessonProfile:
    """The student of a lesson; an empty word is unknown."""

    grade: Literal["K", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"]
    disability: Disability | Literal[""] = ""
    learning_style: LearningStyle | Literal[""] = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LessonAssessment:
    """What the prompt tells of the student's answer."""

    verdict: AnswerVerdict
    reference_answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Lesson:
    """A conversation, and the reply to its last turn.

    Attributes:
        id: Unique name: kind, subject, band and a number.
        kind: What the student needs.
        band: The grade band; the profile's grade is in it.
        subject: The subject.
        standard: Code of the standard that it serves, such as `CCSS.MATH.CONTENT.5.NF.A.1`. Codes alone: the text of
            a standard belongs to its publisher.
        profile: The student.
        turns: Student and tutor in turn, oldest first; the student begins and ends.
        reply: The tutor's reply.
        assessment: What the prompt tells of an answer; only where the student offers one.
        facts: Computed facts that the prompt tells, such as `7 x 8 = 56`.
        withheld: Answers that the reply must not say.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$")]
    kind: Kind
    band: GradeBand
    subject: Subject
    standard: Annotated[str, StringConstraints(pattern=STANDARD)]
    profile: LessonProfile
    turns: Annotated[tuple[Text, ...], Field(min_length=1)]
    reply: Text
    assessment: LessonAssessment | None = None
    facts: tuple[Text, ...] = ()
    withheld: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if GradeBand.of(self.profile.grade) is not self.band:
            raise ValueError(f"band: grade {self.profile.grade} is not in {self.band}")
        if len(self.turns) % 2 == 0:
            raise ValueError("turns: the student begins and ends, so their number is odd")
        if self.kind is Kind.FEEDBACK and self.assessment is None:
            raise ValueError("assessment: feedback needs one")
        if self.kind is Kind.ASSESS and self.assessment is None:
            raise ValueError("assessment: feedback in the form of Assess needs one")
        if self.kind is Kind.EXPLAIN and self.assessment is not None:
            raise ValueError("assessment: nothing is answered in an explain lesson")
        return self

    @property
    def texts(self) -> list[str]:
        """The texts of the reply: one, or those of feedback as JSON."""
        if self.kind is not Kind.ASSESS:
            return [self.reply]
        fields = json.loads(self.reply)
        lists = (*fields["strengths"], *fields["areas_for_improvement"])
        return [fields["feedback"], *lists, fields["next_steps"]]

    @property
    def student(self) -> StudentProfile:
        """The student's profile, with the subject."""
        return StudentProfile(
            grade=self.profile.grade,
            subject=self.subject.title(),
            learning_style=LearningStyle(self.profile.learning_style) if self.profile.learning_style else None,
            disability=Disability(self.profile.disability) if self.profile.disability else None,
        )


_LESSON = TypeAdapter(Lesson)


def read_lessons(path: Path) -> Iterator[Lesson]:
    """Yields the lessons of a file of JSON lines.

    Raises:
        InvalidLine: A line is not a lesson; the message names file, line and field.
    """
    return read_records(path, _LESSON)
