"""What AIVO knows of a student when it replies: grade, subject, learning preference and disability.

Knows nothing of models or prompts, so that the servers' edges can use it without torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mesh.errors import InvalidField, Violation

GRADES = ("K", *(str(year) for year in range(1, 13)))
# A subject is a few words in the prompt; every request pays for its length.
MAX_SUBJECT_CHARACTERS = 64


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
    prefix: str = "", *, grade: str = "", subject: str = "", learning_style: str = "", disability: str = ""
) -> StudentProfile:
    """Returns the profile that four words name; an empty word means unknown.

    Case and surrounding blank space do not matter (`k` is `K`). Line breaks in a subject become spaces.

    Args:
        prefix: Path of the message that the fields belong to, such as `context.`; goes into the violations.
        grade: K, 1 … 12.
        subject: Free text, up to `MAX_SUBJECT_CHARACTERS`.
        learning_style: One of `LearningStyle`.
        disability: One of `Disability`.

    Raises:
        InvalidField: If any word is not accepted; names every such field with the accepted words.
    """
    grade, style, need = grade.strip().upper(), learning_style.strip().lower(), disability.strip().lower()
    subject = " ".join(subject.split())
    violations = [
        *_violations_of(f"{prefix}grade", grade, GRADES),
        *_violations_of(f"{prefix}learning_style", style, LearningStyle),
        *_violations_of(f"{prefix}disability", need, Disability),
    ]
    if len(subject) > MAX_SUBJECT_CHARACTERS:
        limit = f"at most {MAX_SUBJECT_CHARACTERS} characters"
        violations.append(Violation(field=f"{prefix}subject", description=limit))
    if violations:
        raise InvalidField(violations)
    return StudentProfile(
        grade=grade or None,
        subject=subject,
        learning_style=LearningStyle(style) if style else None,
        disability=Disability(need) if need else None,
    )


def _violations_of(field: str, word: str, accepted: Iterable[str]) -> list[Violation]:
    accepted_words = list(map(str, accepted))
    if not word or word in accepted_words:
        return []
    return [Violation(field=field, description=f"must be one of {', '.join(accepted_words)}, or empty")]
