"""The checks that read a teaching policy from replies, on replies written by hand."""

from dataclasses import replace

import pytest

from benchmarks.policy_checks import (
    Occasion,
    PolicyDimension,
    ReadingNorm,
    aims_of,
    differing_aims,
    guidance_in,
    habits_in,
    is_at_level,
    is_shown,
    names_interest,
    scaffold_in,
)
from mesh.tutoring.policy import (
    Guidance,
    GuidanceLevel,
    MistakeKind,
    Mistakes,
    Scaffold,
    Scaffolding,
    SkillSupport,
    TeachingPolicy,
    Writing,
    WritingLevel,
)

EASY = "Ice is cold. It can melt. Then it is wet."
USUAL = "Ice melts when it gets warm. The heat makes it turn into water. Where have you seen that?"
HARD = (
    "Frozen water absorbs thermal energy from its surroundings until the rigid arrangement of its particles collapses, "
    "and the resulting liquid continues to warm afterwards."
)
NORM = ReadingNorm.of([EASY, USUAL, USUAL, USUAL, HARD])
SCIENCE = Occasion(subject="Science", skill="water")


def policy(
    *,
    writing: WritingLevel = WritingLevel.BELOW,
    scaffold: Scaffold = Scaffold.RECAP,
    mistake: MistakeKind = MistakeKind.REVERSED,
    guidance: GuidanceLevel = GuidanceLevel.MUCH,
    interests: tuple[str, ...] = ("trains", "soccer"),
    judged: int = 9,
) -> TeachingPolicy:
    support = SkillSupport(subject="Science", skill="water", scaffold=scaffold, correct=1, judged=judged)
    return TeachingPolicy(
        writing=Writing(level=writing, grade="4", answers=9, sentences=9, words=60, long_words=3, expected_words=90),
        scaffolding=Scaffolding(judged=judged, skills=(support,)),
        mistakes=Mistakes(kind=mistake, judged=9, wrong=6, blank=0, incomplete=0, reversed=4, off_topic=0, misspelt=0),
        guidance=Guidance(level=guidance, answers=9, requests=3),
        interests=interests,
    )


def test_an_easy_reply_stands_below_the_grade_and_a_hard_one_above() -> None:
    assert is_at_level(NORM.place_of(EASY), WritingLevel.BELOW)
    assert not is_at_level(NORM.place_of(EASY), WritingLevel.ABOVE)
    assert is_at_level(NORM.place_of(USUAL), WritingLevel.AT)
    assert is_at_level(NORM.place_of(HARD), WritingLevel.ABOVE)
    assert not is_at_level(NORM.place_of(HARD), WritingLevel.BELOW)


def test_a_norm_needs_words() -> None:
    with pytest.raises(ValueError, match="words"):
        ReadingNorm.of(["", "12."])


@pytest.mark.parametrize(
    ("reply", "scaffold"),
    [
        ("Let's recap. Water freezes at 0 degrees.", Scaffold.RECAP),
        ("Take one small step: name the liquid.", Scaffold.RECAP),
        ("Remember what we saw. Begin with the first part.", Scaffold.RECAP),
        ("Here is a challenge: find another example.", Scaffold.EXTENSION),
        ("What would happen if the ice were salty?", Scaffold.EXTENSION),
        ("Want to try a harder question?", Scaffold.EXTENSION),
        ("Water freezes at 0 degrees. How would you explain it?", Scaffold.STEADY),
        ("Your answer is about another question.", Scaffold.STEADY),
        ("Remember the rule. Then find another example.", Scaffold.STEADY),
    ],
)
def test_recaps_and_extensions_are_told_apart(reply: str, scaffold: Scaffold) -> None:
    assert scaffold_in(reply) is scaffold


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("Just make a guess.", MistakeKind.BLANK),
        ("Write down any idea that you have.", MistakeKind.BLANK),
        ("Did you answer both parts?", MistakeKind.INCOMPLETE),
        ("Explain why, too.", MistakeKind.INCOMPLETE),
        ("Is it the opposite?", MistakeKind.REVERSED),
        ("Which way does the heat go?", MistakeKind.REVERSED),
        ("Stay close to the question.", MistakeKind.OFF_TOPIC),
        ("Highlight the main word.", MistakeKind.OFF_TOPIC),
        ("How do you spell it?", MistakeKind.MISSPELT),
    ],
)
def test_a_habit_is_read_as_the_one_against_its_mistake(reply: str, kind: MistakeKind) -> None:
    assert habits_in(f"Ice melts. {reply}") == {kind}


def test_plain_teaching_advises_no_habit_and_offers_nothing() -> None:
    reply = "Water boils at 100 degrees. The bubbles are steam. What do you see in the pot?"
    assert habits_in(reply) == frozenset()
    assert guidance_in(reply) is GuidanceLevel.USUAL
    assert scaffold_in(reply) is Scaffold.STEADY


@pytest.mark.parametrize(
    ("reply", "level"),
    [
        ("I can help with the next line.", GuidanceLevel.MUCH),
        ("If you get stuck, ask me.", GuidanceLevel.MUCH),
        ("Tell me what is unclear.", GuidanceLevel.MUCH),
        ("Now finish it yourself.", GuidanceLevel.LITTLE),
        ("You can do the rest now.", GuidanceLevel.LITTLE),
        ("Ask yourself what melts.", GuidanceLevel.USUAL),
        ("Tell me what melts.", GuidanceLevel.USUAL),
    ],
)
def test_offers_of_help_are_read(reply: str, level: GuidanceLevel) -> None:
    assert guidance_in(reply) is level


def test_an_interest_is_named_in_any_number_and_as_a_whole_word() -> None:
    assert names_interest("Think of a train on its rails.", ("trains",))
    assert names_interest("Dogs like ice, too.", ("dogs",))
    assert not names_interest("Training helps.", ("trains",))
    assert not names_interest("Think of a boat.", ("trains", "soccer"))


def test_a_reply_shows_the_policy_or_its_contrary() -> None:
    recap = "Let's recap. Ice is cold. Is it the opposite? Think of a train. Ask me if it is hard."
    further = "What would happen if it were salty? Say why. Try it on your own."
    for dimension, aim in aims_of(policy(), SCIENCE).items():
        assert is_shown(dimension, aim, recap, NORM)
        if dimension is not PolicyDimension.READING:
            assert not is_shown(dimension, aim, further, NORM)


def test_an_empty_reply_shows_nothing() -> None:
    plain = policy(scaffold=Scaffold.STEADY, mistake=MistakeKind.NONE, guidance=GuidanceLevel.USUAL)
    assert not any(is_shown(dimension, aim, "", NORM) for dimension, aim in aims_of(plain, SCIENCE).items())


def test_what_is_not_known_or_not_due_is_not_counted() -> None:
    unknown = policy(writing=WritingLevel.UNKNOWN, mistake=MistakeKind.UNKNOWN, interests=(), judged=1)
    assert set(aims_of(unknown, SCIENCE)) == {PolicyDimension.GUIDANCE}
    other_skill = replace(SCIENCE, skill="plants")
    assert PolicyDimension.SCAFFOLD not in aims_of(policy(), other_skill)
    assert PolicyDimension.SCAFFOLD not in aims_of(policy(), replace(SCIENCE, asks_for_hint=True))
    assert PolicyDimension.HABIT not in aims_of(policy(), replace(SCIENCE, is_settled=True))


def test_classmates_differ_where_both_are_known_and_decided_otherwise() -> None:
    own = aims_of(policy(), SCIENCE)
    other = aims_of(policy(scaffold=Scaffold.EXTENSION, interests=("soccer", "cats")), SCIENCE)
    assert differing_aims(own, other) == {
        PolicyDimension.SCAFFOLD: Scaffold.RECAP,
        PolicyDimension.INTEREST: ("trains",),
    }
    assert differing_aims(own, aims_of(policy(interests=()), SCIENCE)) == {}
    assert differing_aims(own, own) == {}
