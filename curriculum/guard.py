"""What a guard learns from: texts of students and tutors that are harmful, and near misses that are school life."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, StringConstraints, TypeAdapter, model_validator
from pydantic.dataclasses import dataclass

from curriculum.library import draw_of
from curriculum.records import read_records, require_unique
from mesh.lm.guarding import HarmCategory, Speaker
from mesh.tutoring.profile import GradeBand

GUARD_TEXTS = Path(__file__).parent / "guard_texts"
LESSON_HARMS = Path(__file__).parent / "lesson_harms.jsonl"
# One text of so many is held out, to choose thresholds with.
_DEVELOPMENT = 10


class HarmAction(StrEnum):
    """What a harmful text calls for: kindness and an adult for a child in trouble, else a kind refusal."""

    SUPPORT = "support"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GuardText:
    """A text with its label.

    Attributes:
        id: Unique name: category and a number.
        category: What it is about, or seems to be.
        band: The grade band of the student.
        speaker: Who says it.
        text: The text. Never explicit, and without instructions that work.
        is_harmful: Whether it must not pass.
        action: What a harmful text calls for; None if it is harmless.
    """

    id: Annotated[str, StringConstraints(pattern=r"^guard-[a-z-]+-\d{3,4}$")]
    category: HarmCategory
    band: GradeBand
    speaker: Speaker
    text: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    is_harmful: bool
    action: HarmAction | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.is_harmful != (self.action is not None):
            raise ValueError("action: a harmful text has one, and no other")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LessonHarm:
    """What a student's last turn in a lesson on feelings or boundaries is about; the turns of the others are safe.

    Attributes:
        lesson: The lesson's id.
        category: What is harmful in the turn; None if people would not agree, so that no guard learns from it.
    """

    lesson: str
    category: HarmCategory | None


_TEXT = TypeAdapter(GuardText)
_HARM = TypeAdapter(LessonHarm)


def load_guard_texts(folder: Path = GUARD_TEXTS) -> list[GuardText]:
    """Returns the texts of all files of a folder, in the order of their names.

    Raises:
        InvalidLine: A line is not such a text, or an id occurs twice; names file, line and field.
    """
    texts = [text for path in sorted(folder.glob("*.jsonl")) for text in read_records(path, _TEXT)]
    require_unique((text.id for text in texts), folder)
    return texts


def load_lesson_harms(path: Path = LESSON_HARMS) -> dict[str, HarmCategory | None]:
    """Returns the categories of `LessonHarm` by lesson.

    Raises:
        InvalidLine: A line is no such record, or a lesson occurs twice; names file, line and field.
    """
    harms = list(read_records(path, _HARM))
    require_unique((harm.lesson for harm in harms), path)
    return {harm.lesson: harm.category for harm in harms}


def is_for_development(text: GuardText) -> bool:
    """Whether a text chooses thresholds and is never trained on; its id alone decides."""
    return draw_of(text.id) % _DEVELOPMENT == 0
