"""What the tutor learns: every lesson that is not held out, and plain sentences, so that it keeps what it knew."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from curriculum.answers import read_explained
from curriculum.lesson import Kind, Lesson, Subject
from curriculum.library import draw_of
from curriculum.prompts import prompt_of
from curriculum.train.training import RoleExample
from mesh.lm.chat import Example, encode_example, end_of_turn
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.profile import Disability, GradeBand, StudentProfile

# Subjects as schools write them: a request's subject is free text.
_SPELLINGS = {
    Subject.MATHEMATICS: ("Math", "Mathematics", "math", "Maths", "Algebra", ""),
    Subject.READING_AND_WRITING: ("English", "Reading", "ELA", "Language Arts", "Writing", "reading", ""),
    Subject.SCIENCE: ("Science", "science", "Science", "General Science", ""),
    Subject.SOCIAL_STUDIES: ("Social Studies", "History", "social studies", "Civics", "Geography", ""),
}
# One lesson of so many is told without the grade; its reply must fit any grade's form. Support and boundaries do for
# every grade, and are what a caller who tells nothing of the student needs most.
_NO_GRADE, _NO_GRADE_TALK = 8, 3
_ANY_GRADE_BANDS = (GradeBand.G3_5, GradeBand.G6_8)
_TALK = (Kind.FEELINGS, Kind.BOUNDARIES)
# A small model learns these slowest: to say the verdict given, to keep an answer back, to say early that there is time.
_TOLD_TWICE = frozenset({Kind.FEEDBACK, Kind.HINT})


def lesson_examples(lessons: Sequence[Lesson], tokenizer: PreTrainedTokenizerBase) -> list[RoleExample]:
    """Returns one example per lesson; subject and grade are told as requests tell them, or not at all."""
    return [
        RoleExample(
            example=encode_example(tokenizer, replace(prompt_of(lesson), profile=_profile_told(lesson)), lesson.reply)
        )
        for lesson in lessons
    ]


def lessons_of_epoch(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Returns the lessons of an epoch: each once, those that are learned slowest again, and the slowest once more."""
    slow = [
        lesson for lesson in lessons if lesson.kind in _TOLD_TWICE or lesson.student.disability is Disability.ANXIETY
    ]
    slowest = [
        lesson
        for lesson in lessons
        if lesson.assessment and lesson.assessment.verdict is AnswerVerdict.PARTIALLY_CORRECT
    ]
    return [*lessons, *slow, *slowest]


def exact_examples(lessons: Sequence[Lesson], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Returns one example per lesson with its profile as it is, for measuring."""
    return [encode_example(tokenizer, prompt_of(lesson), lesson.reply) for lesson in lessons]


def plain_examples(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[RoleExample]:
    """Yields the texts of EntailmentBank (Dalvi et al., 2021), JSON lines, as plain text without a student.

    Raises:
        InvalidGradedAnswer: A line lacks a field; names file, line and field.
    """
    for explained in read_explained(path):
        facts = ". ".join(explained.facts)
        text = f"{explained.question} {explained.answer} {facts}. {explained.hypothesis}."
        tokens = (*tokenizer(text, add_special_tokens=False)["input_ids"], end_of_turn(tokenizer))
        yield RoleExample(example=Example(tokens=tokens, reply_start=1))


def _profile_told(lesson: Lesson) -> StudentProfile:
    draw = draw_of(f"profile {lesson.id}")
    spellings = _SPELLINGS[lesson.subject]
    is_talk = lesson.kind in _TALK
    is_told = (not is_talk and lesson.band not in _ANY_GRADE_BANDS) or draw % (_NO_GRADE_TALK if is_talk else _NO_GRADE)
    return replace(
        lesson.student,
        subject=spellings[draw // _NO_GRADE % len(spellings)],
        grade=lesson.profile.grade if is_told else None,
    )
