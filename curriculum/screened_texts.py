"""The texts that a guard is trained and measured with: who says them, in which grade, and whether they are harmful."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from curriculum.guard import GuardText
from curriculum.lesson import Kind, Lesson
from curriculum.library import draw_of
from curriculum.safety_sets import HarmfulRequest, ModeratedText
from curriculum.variants import Spelling, respelt
from mesh.lm.guarding import HarmCategory, Speaker, pieces_of
from mesh.tutoring.profile import GRADES, GradeBand

# What students say in these lessons may be harmful: a child tells of a danger, or asks for one.
_TALK = frozenset({Kind.FEELINGS, Kind.BOUNDARIES})
# Of ten texts of the moderation set so many are held out.
_HELD_OUT_MODERATED = 3
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenedText:
    """A text as a guard reads it, with what it should find.

    Attributes:
        text: The text.
        speaker: Who says it.
        grade: The student's; None if unknown.
        category: What is harmful in it; None if nothing is.
        topic: What it is about, or seems to be about; None for school work.
    """

    text: str
    speaker: Speaker
    grade: str | None = None
    category: HarmCategory | None = None
    topic: HarmCategory | None = None


def screened(text: GuardText) -> ScreenedText:
    """Returns a guard text with a grade of its band; its id alone decides which."""
    grades = [grade for grade in GRADES if GradeBand.of(grade) is text.band]
    return ScreenedText(
        text=text.text,
        speaker=text.speaker,
        grade=grades[draw_of(f"grade {text.id}") % len(grades)],
        category=text.category if text.is_harmful else None,
        topic=text.category,
    )


def reply_texts(lessons: Iterable[Lesson]) -> list[ScreenedText]:
    """Returns what tutors say in lessons; all of it is safe."""
    return [
        ScreenedText(text=turn, speaker=Speaker.TUTOR, grade=lesson.profile.grade)
        for lesson in lessons
        for turn in (*lesson.turns[1::2], *lesson.texts)
    ]


def work_texts(lessons: Iterable[Lesson]) -> list[ScreenedText]:
    """Returns what students say at work; all of it is safe."""
    return [
        ScreenedText(text=turn, speaker=Speaker.STUDENT, grade=lesson.profile.grade)
        for lesson in lessons
        if lesson.kind not in _TALK
        for turn in lesson.turns[::2]
    ]


def talk_texts(lessons: Iterable[Lesson], harms: Mapping[str, HarmCategory | None]) -> list[ScreenedText]:
    """Returns what students say last where they talk of feelings or try boundaries, if it is clear what that is.

    Args:
        lessons: Any lessons; those of other kinds are left out.
        harms: See `load_lesson_harms`.
    """
    unclear = {lesson for lesson, category in harms.items() if category is None}
    clear = [lesson for lesson in lessons if lesson.kind in _TALK and lesson.id not in unclear]
    return [
        ScreenedText(
            text=lesson.turns[-1],
            speaker=Speaker.STUDENT,
            grade=lesson.profile.grade,
            category=harms.get(lesson.id),
            topic=harms.get(lesson.id),
        )
        for lesson in clear
    ]


def moderated_texts(texts: Iterable[ModeratedText]) -> list[ScreenedText]:
    """Returns texts of the moderation set, as if a student said them; of several categories, the first counts."""
    return [
        ScreenedText(text=text.text, speaker=Speaker.STUDENT, category=category, topic=category)
        for text in texts
        for category in [next((category for category in HarmCategory if category in text.categories), None)]
    ]


def requested_texts(requests: Iterable[HarmfulRequest]) -> list[ScreenedText]:
    """Returns requests of SimpleSafetyTests; their areas are no categories of a guard, so the topic says the least."""
    return [
        ScreenedText(text=request.text, speaker=Speaker.STUDENT, category=HarmCategory.DANGER) for request in requests
    ]


def is_moderated_held_out(text: ModeratedText) -> bool:
    """Whether a text of the moderation set measures and is never trained on; the text alone decides."""
    return draw_of(f"moderation {text.text}") % 10 < _HELD_OUT_MODERATED


def told_anew(texts: Sequence[ScreenedText], draws: random.Random) -> list[ScreenedText]:
    """Returns texts as one epoch tells them: a piece or a sentence of a long one, some without the grade, some respelt.

    Harmful texts and harmless ones are respelt alike, so that odd spelling alone is no sign of harm.
    """
    return [_retell(text, draws) for text in texts]


def respelt_texts(texts: Sequence[ScreenedText], spelling: Spelling, draws: random.Random) -> list[ScreenedText]:
    """Returns the texts written otherwise."""
    return [replace(text, text=respelt(text.text, spelling, draws)) for text in texts]


# Shares of the spellings that training tells. The rules of serving undo most of leet, spacing and homoglyphs.
_SHARES = {
    Spelling.PLAIN: 58, Spelling.MISSPELT: 20, Spelling.LEET: 10, Spelling.SPACED: 3, Spelling.CASE: 6,
    Spelling.HOMOGLYPHS: 3,
}  # fmt: skip
_WITHOUT_GRADE, _ONE_SENTENCE = 0.25, 0.5


def _retell(text: ScreenedText, draws: random.Random) -> ScreenedText:
    words = draws.choice(pieces_of(text.text))
    if text.speaker is Speaker.TUTOR and text.category is None and draws.random() < _ONE_SENTENCE:
        # Replies are screened sentence by sentence while they stream.
        words = draws.choice(_SENTENCE_END.split(words))
    (spelling,) = draws.choices(list(_SHARES), weights=list(_SHARES.values()))
    grade = None if draws.random() < _WITHOUT_GRADE else text.grade
    return replace(text, text=respelt(words, spelling, draws), grade=grade)
