"""The replies that people wrote: one for every occasion, and none of them a bare refusal."""

import re

import pytest

from brain_server.safety.verdict import Finding, SafetyAction, SafetyCategory, SafetyVerdict, TextKind
from brain_server.safety.written_replies import Occasion, WrittenReplies, load_written_replies
from mesh.lm.guarding import HarmCategory
from mesh.tutoring.profile import GRADES, GradeBand
from mesh.tutoring.reading_level import reading_grade

REPLIES = WrittenReplies(help_line="call or text 988")
BANDS = {"K": GradeBand.K_2, "4": GradeBand.G3_5, "7": GradeBand.G6_8, "11": GradeBand.G9_12}


def verdict_on(category: SafetyCategory, action: SafetyAction, text: TextKind = TextKind.PROMPT) -> SafetyVerdict:
    return SafetyVerdict(text=text, findings=(Finding(category=category, probability=1.0, action=action),))


@pytest.mark.parametrize("grade", [*GRADES, None])
@pytest.mark.parametrize("category", list(HarmCategory))
def test_each_category_has_a_reply_for_each_grade(category: HarmCategory, grade: str | None) -> None:
    for action in (SafetyAction.SUPPORT, SafetyAction.REFUSE):
        if (category, action) != (HarmCategory.SELF_HARM, SafetyAction.REFUSE):
            assert REPLIES.pick(verdict_on(SafetyCategory(category), action), grade=grade)
    reply = verdict_on(SafetyCategory(category), SafetyAction.REFUSE, TextKind.REPLY)
    assert REPLIES.pick(reply, grade=grade) != REPLIES.pick(reply, grade=grade, in_feedback=True)


@pytest.mark.parametrize("grade", BANDS)
def test_a_child_in_distress_hears_of_an_adult_and_of_the_help_line(grade: str) -> None:
    for category in (SafetyCategory.SELF_HARM, SafetyCategory.VIOLENCE, SafetyCategory.SEXUAL):
        text = REPLIES.pick(verdict_on(category, SafetyAction.SUPPORT), grade=grade)
        assert "call or text 988" in text
        assert re.search(r"grown-up|adult|parent", text)
        assert not re.search(r"can't help|won't|will not help|policy", text)


@pytest.mark.parametrize("grade", [*GRADES, None])
def test_a_child_who_is_sad_hears_of_an_adult_and_of_no_crisis(grade: str | None) -> None:
    text = REPLIES.pick(verdict_on(SafetyCategory.DISTRESS, SafetyAction.SUPPORT), grade=grade)
    assert re.search(r"(grown-up|adult) you trust", text)
    assert not re.search(r"call or text|911|danger|can't help|won't", text)


def test_the_help_line_is_that_of_the_settings() -> None:
    replies = WrittenReplies(help_line="call 116 123")
    assert "call 116 123" in replies.pick(verdict_on(SafetyCategory.SELF_HARM, SafetyAction.SUPPORT), grade="9")
    assert not any("988" in text for text in load_written_replies().values())


def test_no_refusal_is_bare() -> None:
    for (occasion, _, _), text in load_written_replies().items():
        if occasion is Occasion.REFUSE:
            assert re.search(r"\?$", text)
            assert re.search(r"teacher|parent|grown-up|adult|nurse|counselor|doctor", text)


def test_replies_to_older_students_are_harder_to_read() -> None:
    levels = [
        sum(reading_grade(text) for (_, _, band), text in load_written_replies().items() if band is wanted_band)
        for wanted_band in GradeBand
    ]
    assert levels == sorted(levels)
