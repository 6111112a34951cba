"""All lessons of the project, and which of them training never sees."""

from hashlib import sha256
from pathlib import Path

from curriculum.lesson import Lesson, read_lessons
from curriculum.mathematics import worked_lessons
from curriculum.records import require_unique

LESSONS = Path(__file__).parent / "lessons"
# One lesson of so many is held out.
_HELD_OUT = 12


def load_lessons(folder: Path = LESSONS) -> list[Lesson]:
    """Returns the lessons of all files below a folder, in the order of their names, then the worked ones.

    Raises:
        InvalidLine: A line is not a lesson, or an id occurs twice.
    """
    written = [lesson for path in sorted(folder.rglob("*.jsonl")) for lesson in read_lessons(path)]
    lessons = [*written, *worked_lessons()]
    require_unique((lesson.id for lesson in lessons), folder)
    return lessons


def is_held_out(lesson: Lesson) -> bool:
    """Whether a lesson measures and is never trained on; its id alone decides."""
    return draw_of(lesson.id) % _HELD_OUT == 0


def draw_of(text: str) -> int:
    """Returns a number that the text alone decides, as good as drawn, from 0 to 2**32 - 1."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")
