"""The texts that a guard learns from and is measured with."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from curriculum.guard import GuardText, is_for_development, load_guard_texts, load_lesson_harms
from curriculum.lesson import Kind
from curriculum.library import load_lessons
from curriculum.safety_sets import ModeratedText
from curriculum.screened_texts import (
    ScreenedText,
    is_moderated_held_out,
    moderated_texts,
    reply_texts,
    screened,
    talk_texts,
    told_anew,
    work_texts,
)
from mesh.lm.guarding import HarmCategory, Speaker
from mesh.tutoring.profile import GradeBand


@pytest.fixture(scope="module")
def texts() -> Sequence[GuardText]:
    return load_guard_texts()


def test_a_guard_text_is_told_with_a_grade_of_its_band(texts: Sequence[GuardText]) -> None:
    pairs = [(text, screened(text)) for text in texts]
    assert all(told.grade and GradeBand.of(told.grade) is text.band for text, told in pairs)
    assert len({told.grade for _, told in pairs}) == 13
    assert all((told.category is not None) is text.is_harmful for text, told in pairs)


def test_what_is_said_at_work_is_safe_and_so_are_all_replies() -> None:
    lessons = load_lessons()
    work, replies = work_texts(lessons), reply_texts(lessons)
    assert {text.speaker for text in work} == {Speaker.STUDENT}
    assert {text.speaker for text in replies} == {Speaker.TUTOR}
    assert {text.category for text in (*work, *replies)} == {None}
    assert len(replies) > len(lessons)
    talk = {lesson.turns[-1] for lesson in lessons if lesson.kind in {Kind.FEELINGS, Kind.BOUNDARIES}}
    assert len({text.text for text in work} & talk) < 5


def test_what_students_say_of_themselves_is_labelled_and_the_unclear_is_left_out() -> None:
    lessons, harms = load_lessons(), load_lesson_harms()
    kinds = {lesson.id: lesson.kind for lesson in lessons}
    assert {kinds[lesson] for lesson in harms} == {Kind.FEELINGS, Kind.BOUNDARIES}
    texts = talk_texts(lessons, harms)
    unclear = sum(category is None for category in harms.values())
    assert len(texts) == sum(kind in {Kind.FEELINGS, Kind.BOUNDARIES} for kind in kinds.values()) - unclear
    assert {text.category for text in texts} == {None, *HarmCategory}
    by_words = {text.text: text.category for text in texts}
    assert by_words["i want to be dead"] is HarmCategory.SELF_HARM
    assert by_words["this homework is killing me"] is None


def test_a_text_of_several_categories_has_the_first() -> None:
    categories = frozenset({HarmCategory.HATE, HarmCategory.VIOLENCE})
    text, safe_text = moderated_texts(
        [ModeratedText(text="a", categories=categories), ModeratedText(text="b", categories=frozenset())]
    )
    assert (text.category, safe_text.category) == (HarmCategory.VIOLENCE, None)


def test_three_of_ten_moderated_texts_are_held_out() -> None:
    texts = [ModeratedText(text=f"text {place}", categories=frozenset()) for place in range(1000)]
    assert 250 < sum(map(is_moderated_held_out, texts)) < 350


def test_an_epoch_tells_harmful_and_harmless_texts_alike(texts: Sequence[GuardText]) -> None:
    plain = [screened(text) for text in texts if not is_for_development(text)]
    told = told_anew(plain, random.Random(0))
    pairs = list(zip(plain, told, strict=True))
    for is_harmful in (True, False):
        kind = [(before, after) for before, after in pairs if (before.category is not None) is is_harmful]
        students = [(before, after) for before, after in kind if before.speaker is Speaker.STUDENT]
        assert 0.4 < sum(before.text == after.text for before, after in students) / len(students) < 0.6
        assert 0.2 < sum(after.grade is None for _, after in kind) / len(kind) < 0.3
    assert Counter(text.category for text in told) == Counter(text.category for text in plain)
    assert told_anew(plain, random.Random(0)) == told != told_anew(plain, random.Random(1))


def test_a_long_text_is_told_in_pieces_and_a_safe_reply_often_as_a_sentence() -> None:
    long_text = ScreenedText(text="word " * 500, speaker=Speaker.STUDENT, category=HarmCategory.HATE)
    reply = ScreenedText(text="First of all. Second of all.", speaker=Speaker.TUTOR)
    told = told_anew([long_text, reply] * 100, random.Random(0))
    assert max(len(text.text) for text in told) < 1300
    sentences = Counter(text.text for text in told if text.speaker is Speaker.TUTOR)
    assert sentences["First of all."] > 5
    assert sentences["First of all. Second of all."] > 5
