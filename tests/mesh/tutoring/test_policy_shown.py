"""Which parts of a teaching policy a reader finds in a reply."""

from dataclasses import replace

import pytest

from mesh.tutoring.policy import Guidance, GuidanceLevel, MistakeKind, TeachingPolicy, WritingLevel
from mesh.tutoring.policy_shown import PolicySign, signs_in, signs_of
from testing.policy import FEW_MISTAKES, POLICY, SHORT_WRITING

NOTHING_KNOWN = replace(
    POLICY,
    writing=replace(SHORT_WRITING, level=WritingLevel.UNKNOWN),
    guidance=Guidance(level=GuidanceLevel.USUAL, answers=24, requests=4),
)


def against(kind: MistakeKind) -> TeachingPolicy:
    return replace(NOTHING_KNOWN, mistakes=replace(FEW_MISTAKES, kind=kind))


def guided(level: GuidanceLevel) -> TeachingPolicy:
    return replace(NOTHING_KNOWN, guidance=Guidance(level=level, answers=24, requests=4))


def writing(level: WritingLevel) -> TeachingPolicy:
    return replace(NOTHING_KNOWN, writing=replace(SHORT_WRITING, level=level))


def test_what_is_not_known_asks_for_no_sign() -> None:
    assert signs_of(NOTHING_KNOWN) == frozenset()
    assert signs_in("Tell me what you think of football.", NOTHING_KNOWN) == frozenset()


@pytest.mark.parametrize(
    ("policy", "shows", "lacks"),
    [
        (against(MistakeKind.BLANK), "Note any idea that comes to you.", "Plants need light."),
        (against(MistakeKind.INCOMPLETE), "Does every part have an answer?", "One part is still missing."),
        (against(MistakeKind.REVERSED), "Is it the other way round?", "Turn round."),
        (against(MistakeKind.OFF_TOPIC), "Keep your eyes on the question.", "You can check it with the question."),
        (against(MistakeKind.MISSPELT), "How do you spell it?", "How do you say it?"),
        (guided(GuidanceLevel.MUCH), "If you get stuck, I can help.", "Go on by yourself."),
        (guided(GuidanceLevel.LITTLE), "Finish it on your own.", "Ask me for help."),
        (
            writing(WritingLevel.BELOW),
            "Roots drink. They take up water.",
            "Roots take up water" + " and more" * 4 + ".",
        ),
        (
            writing(WritingLevel.ABOVE),
            "Roots take up the water that the whole plant needs in order to grow.",
            "Roots drink. They take up water.",
        ),
        (
            replace(NOTHING_KNOWN, interests=("space travel",)),
            "Imagine a trip through space.",
            "Imagine a spacious room.",
        ),
    ],
)
def test_a_sign_is_read_from_the_reply_alone(policy: TeachingPolicy, shows: str, lacks: str) -> None:
    assert signs_in(shows, policy) == signs_of(policy)
    assert len(signs_of(policy)) == 1
    assert signs_in(lacks, policy) == frozenset()


def test_a_reply_may_show_a_part_of_the_policy() -> None:
    policy = replace(POLICY, interests=("football",))
    assert signs_of(policy) == {PolicySign.WRITING, PolicySign.GUIDANCE, PolicySign.INTEREST}
    assert signs_in("Think of footballs. Then finish it.", policy) == {PolicySign.WRITING, PolicySign.INTEREST}


def test_an_empty_reply_shows_nothing() -> None:
    assert signs_in(" ", replace(POLICY, interests=("football",))) == frozenset()
