"""The frame of a reply: its verdict, its manner and its form, over all profiles, situations and manners."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cloning_server.examples import phrases
from cloning_server.examples.brief import ReplyBrief
from cloning_server.examples.framing import frame_reply
from cloning_server.examples.manner import Manner
from cloning_server.examples.situations import Situation, draw_of
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.form import LONG_WORD_LETTERS, count_words, split_sentences
from mesh.tutoring.judgement import agrees, judges
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, WritingLevel
from mesh.tutoring.profile import GRADES, Disability, LearningStyle, StudentProfile
from mesh.tutoring.teaching import rules_of
from testing.lessons import PROFILE

TAUGHT, ASKED = "The heart pumps blood.", "The question asks what the heart does."
# A prompt's situation, and the verdict that it tells.
SITUATIONS: tuple[tuple[Situation, AnswerVerdict | None], ...] = (
    *((situation, None) for situation in Situation if situation is not Situation.FEEDBACK),
    *((Situation.FEEDBACK, verdict) for verdict in AnswerVerdict),
)
MANNERS = tuple(
    Manner(writing=writing, mistake=mistake, guidance=guidance, interest=interest)
    for writing, mistake, guidance, interest in itertools.product(
        WritingLevel, MistakeKind, GuidanceLevel, ("", "soccer")
    )
)
# No phrase has more forms, so that all of them are drawn.
DRAWS = range(60)
BRIEF = ReplyBrief(
    profile=StudentProfile(grade="9"),
    situation=Situation.FEEDBACK,
    question="What does the heart do?",
    reference="",
    verdict=AnswerVerdict.INCORRECT,
    scaffold=Scaffold.STEADY,
    manner=Manner(),
    is_private=False,
    draw=0,
    prompt=Prompt(profile=StudentProfile(grade="9"), turns=(Turn(role=Role.STUDENT, text="What does the heart do?"),)),
)


def body_of(brief: ReplyBrief) -> list[str]:
    """What a teacher says for a brief, in one sentence."""
    says_answer = brief.situation is Situation.EXPLAIN or brief.verdict is AnswerVerdict.CORRECT
    return [TAUGHT if says_answer else ASKED]


def framed(**facts: object) -> str:
    brief = replace(BRIEF, **facts)  # type: ignore[arg-type] # any field
    return frame_reply(brief, body_of(brief))


def briefs_of(profile: StudentProfile) -> Iterator[ReplyBrief]:
    """Yields briefs of all situations and scaffolds with all manners and draws in turn, another choice per profile."""
    combinations = tuple(itertools.product(SITUATIONS, Scaffold))
    start = draw_of(repr(profile))
    for place, ((situation, verdict), scaffold) in enumerate(combinations, start=start):
        # The strides have no divisor in common with how many there are, so that each combination comes up.
        yield replace(
            BRIEF,
            profile=profile,
            situation=situation,
            verdict=verdict,
            scaffold=scaffold,
            manner=MANNERS[place * 37 % len(MANNERS)],
            draw=place,
        )


@pytest.mark.parametrize("grade", [*GRADES, None])
@pytest.mark.parametrize("need", [None, *Disability])
def test_a_reply_of_every_profile_keeps_its_form_and_states_the_verdict_of_its_prompt_and_no_other(
    grade: str | None, need: Disability | None
) -> None:
    for style in (None, *LearningStyle):
        profile = StudentProfile(grade=grade, learning_style=style, disability=need)
        for brief in briefs_of(profile):
            reply = frame_reply(brief, body_of(brief))
            assert rules_of(profile).violations(reply) == [], (brief, reply)
            assert not judges(reply) if brief.verdict is None else agrees(reply, brief.verdict), (brief, reply)


@pytest.mark.parametrize(("situation", "verdict"), SITUATIONS)
def test_no_manner_changes_what_a_reply_says_of_an_answer(situation: Situation, verdict: AnswerVerdict | None) -> None:
    for place, (manner, scaffold) in enumerate(itertools.product(MANNERS, Scaffold)):
        reply = framed(situation=situation, verdict=verdict, manner=manner, scaffold=scaffold, draw=place)
        assert not judges(reply) if verdict is None else agrees(reply, verdict), reply


@pytest.mark.parametrize("verdict", AnswerVerdict)
def test_every_opener_of_a_verdict_states_it_and_no_other(verdict: AnswerVerdict) -> None:
    for opener in phrases.VERDICT_OPENERS[verdict]:
        assert agrees(opener, verdict), opener
        others = {other for other in AnswerVerdict if agrees(opener, other)} - {verdict}
        # What is wrong, blank and about something else is none of it right.
        assert others <= {AnswerVerdict.INCORRECT, AnswerVerdict.BLANK, AnswerVerdict.OFF_TOPIC} - {verdict}, opener


def every_phrase(writing: WritingLevel) -> Iterator[str]:
    """Yields every sentence of a frame for a student's writing, but for the openers that state a verdict."""
    for forms in (*phrases.OPENERS.values(), [forms[writing] for forms in phrases.HABITS.values()]):
        yield from filter(None, forms)
    yield from (*phrases.CALM, *phrases.END_MARKERS, *phrases.HELP, *phrases.GO_BACK)
    yield from (form.format(interest="soccer") for form in phrases.SHORT_INTERESTS)
    yield from (
        closing_of(manner, scaffold, style, draw)
        for manner in MANNERS
        if manner.writing is writing
        for scaffold, style, draw in itertools.product(Scaffold, (None, *LearningStyle), range(6))
    )


def closing_of(
    manner: Manner, scaffold: Scaffold = Scaffold.STEADY, style: LearningStyle | None = None, draw: int = 0
) -> str:
    return phrases.closing_question(scaffold, style, manner, draw=draw)


@pytest.mark.parametrize(
    ("writing", "most_words"), [(WritingLevel.BELOW, 11), (WritingLevel.AT, 13), (WritingLevel.ABOVE, 19)]
)
def test_every_phrase_is_one_plain_sentence_as_long_as_the_student_writes_and_judges_nothing(
    writing: WritingLevel, most_words: int
) -> None:
    for phrase in every_phrase(writing):
        assert len(split_sentences(phrase)) == 1, phrase
        assert count_words(phrase) <= most_words, phrase
        assert all(len(word.strip(".,?")) < LONG_WORD_LETTERS for word in phrase.split()), phrase
        assert phrase[0].isupper(), phrase
        assert phrase[-1] in ".?", phrase
        assert not judges(phrase), phrase
        for need in Disability:
            avoids = rules_of(StudentProfile(disability=need)).avoids
            assert not any(words in phrase.lower() for words in avoids), phrase


@pytest.mark.parametrize("kind", phrases.HABITS)
def test_a_habit_is_longer_for_a_student_who_writes_longer_sentences(kind: MistakeKind) -> None:
    words = [
        count_words(phrases.HABITS[kind][writing])
        for writing in (WritingLevel.BELOW, WritingLevel.AT, WritingLevel.ABOVE)
    ]
    assert words == sorted(set(words))


def test_every_sentence_but_the_habit_has_several_forms() -> None:
    openers = (*phrases.VERDICT_OPENERS.values(), *phrases.OPENERS.values())
    all_forms = [*openers, phrases.CALM, phrases.HELP, phrases.SHORT_INTERESTS]
    assert all(len({form for form in forms if form}) >= 2 for forms in all_forms)


@pytest.mark.parametrize("style", [None, *LearningStyle])
def test_a_reply_ends_with_a_question_that_fits_the_style(style: LearningStyle | None) -> None:
    action = {
        None: "explain",
        LearningStyle.VISUAL: "draw",
        LearningStyle.AUDITORY: "aloud",
        LearningStyle.READING: "write",
        LearningStyle.KINESTHETIC: "act",
        LearningStyle.STRUCTURED: "steps",
    }[style]
    for scaffold, draw in itertools.product(Scaffold, range(6)):
        question = split_sentences(framed(profile=StudentProfile(learning_style=style), scaffold=scaffold, draw=draw))
        assert question[-1].endswith("?")
        assert action in question[-1]


def test_a_student_with_autism_is_told_last_when_the_work_is_done() -> None:
    ends = {
        split_sentences(framed(profile=StudentProfile(disability=Disability.AUTISM), draw=draw))[-1] for draw in DRAWS
    }
    assert ends == set(phrases.END_MARKERS)


@pytest.mark.parametrize("writing", WritingLevel)
@pytest.mark.parametrize("kind", phrases.HABITS)
def test_every_reply_holds_the_habit_against_the_usual_mistake(kind: MistakeKind, writing: WritingLevel) -> None:
    manner = Manner(mistake=kind, writing=writing)
    for (situation, verdict), draw in itertools.product(SITUATIONS, range(4)):
        reply = framed(situation=situation, verdict=verdict, manner=manner, draw=draw)
        assert holds_habit(reply, kind)


def holds_habit(reply: str, kind: MistakeKind) -> bool:
    return any(habit in reply for habit in phrases.HABITS[kind].values())


@pytest.mark.parametrize("level", GuidanceLevel)
def test_a_reply_offers_as_much_guidance_as_the_student_asks_for(level: GuidanceLevel) -> None:
    for draw in DRAWS:
        reply = framed(manner=Manner(guidance=level), draw=draw)
        assert any(offer in reply for offer in phrases.HELP) is (level is GuidanceLevel.MUCH)
        assert reply.endswith(("by yourself?", "on your own?")) is (level is GuidanceLevel.LITTLE)


@pytest.mark.parametrize(
    ("scaffold", "things"),
    [
        (Scaffold.RECAP, {"the first part", "one small part"}),
        (Scaffold.STEADY, {"it"}),
        (Scaffold.EXTENSION, {"another example", "a new case"}),
    ],
)
def test_a_weak_skill_gets_a_small_step_and_a_secure_one_a_step_further(scaffold: Scaffold, things: set[str]) -> None:
    replies = [framed(situation=Situation.EXPLAIN, verdict=None, scaffold=scaffold, draw=draw) for draw in DRAWS]
    questions = {split_sentences(reply)[-1] for reply in replies}
    assert {question.split(" explain ")[1].removesuffix("?") for question in questions} == things


@pytest.mark.parametrize(("situation", "verdict"), SITUATIONS)
def test_nobody_is_sent_further_who_is_stuck_or_whose_answer_is_not_right(
    situation: Situation, verdict: AnswerVerdict | None
) -> None:
    goes_further = situation in {Situation.EXPLAIN, Situation.CHECK} or verdict is AnswerVerdict.CORRECT
    further = {closing_of(Manner(), Scaffold.EXTENSION, draw=draw) for draw in DRAWS}
    for draw in DRAWS:
        reply = framed(situation=situation, verdict=verdict, scaffold=Scaffold.EXTENSION, draw=draw)
        assert (split_sentences(reply)[-1] in further) is goes_further


@pytest.mark.parametrize("writing", WritingLevel)
def test_a_reply_names_the_interest_of_the_student_and_none_without_one(writing: WritingLevel) -> None:
    for draw in DRAWS:
        manner = Manner(interest="rock climbing", writing=writing)
        assert framed(manner=manner, draw=draw).count("rock climbing") == 1
        assert " with " not in framed(manner=Manner(writing=writing), draw=draw)


def test_all_that_a_policy_asks_for_is_in_every_reply_of_an_older_student() -> None:
    for manner, draw in itertools.product(MANNERS, range(4)):
        reply = framed(manner=manner, draw=draw)
        assert (manner.mistake not in phrases.HABITS) or holds_habit(reply, manner.mistake)
        assert manner.interest in reply


def test_a_body_that_opens_the_reply_needs_no_other_opener() -> None:
    brief = replace(BRIEF, profile=PROFILE)
    reply = frame_reply(brief, ["You are not there yet.", ASKED], has_opener=True)
    assert reply.splitlines()[:2] == ["You are not there yet.", f"1. {ASKED}"]
    bare = frame_reply(brief, [], has_opener=True)
    assert bare.startswith(phrases.VERDICT_OPENERS[AnswerVerdict.INCORRECT])


@pytest.mark.parametrize(
    "interest",
    ["the planets of our sun and all of their moons", "basketball, volleyball, skateboarding", "let's dance"],
)
@pytest.mark.parametrize("need", [None, *Disability])
def test_an_interest_that_does_not_fit_a_small_child_costs_neither_the_reply_nor_its_habit(
    interest: str, need: Disability | None
) -> None:
    profile = StudentProfile(grade="K", disability=need)
    manner = Manner(interest=interest, mistake=MistakeKind.REVERSED)
    for draw in DRAWS:
        reply = framed(profile=profile, manner=manner, draw=draw)
        assert rules_of(profile).violations(reply) == []
        assert holds_habit(reply, MistakeKind.REVERSED)


def test_a_small_childs_short_reply_keeps_the_habit_and_leaves_out_what_is_worth_less() -> None:
    manner = Manner(mistake=MistakeKind.INCOMPLETE, guidance=GuidanceLevel.MUCH, interest="soccer")
    brief = replace(BRIEF, profile=StudentProfile(grade="K"), manner=manner, scaffold=Scaffold.RECAP)
    reply = frame_reply(brief, [ASKED, ASKED, ASKED])
    assert len(split_sentences(reply)) == 6
    assert holds_habit(reply, MistakeKind.INCOMPLETE)
    assert "soccer" not in reply or not any(offer in reply for offer in phrases.HELP)


@pytest.mark.parametrize("body", ["We cannot see air.", "There is a small stepladder."])
def test_an_anxious_student_is_calmed_where_nothing_else_does_it(body: str) -> None:
    profile = StudentProfile(grade="4", disability=Disability.ANXIETY)
    for draw in DRAWS:
        brief = replace(BRIEF, profile=profile, draw=draw)
        assert rules_of(profile).violations(frame_reply(brief, [body])) == []
        first = split_sentences(frame_reply(brief, [body]))[:2]
        assert any(calm in first for calm in phrases.CALM)
    assert not any(calm in framed() for calm in phrases.CALM)


@pytest.mark.parametrize(("situation", "verdict"), SITUATIONS)
def test_replies_to_different_items_do_not_sound_alike(situation: Situation, verdict: AnswerVerdict | None) -> None:
    manner = Manner(mistake=MistakeKind.INCOMPLETE, guidance=GuidanceLevel.MUCH)
    replies = [
        framed(situation=situation, verdict=verdict, manner=manner, draw=draw_of(f"item {number}"))
        for number in range(100)
    ]
    for place in (0, -1):
        sentences = Counter(split_sentences(reply)[place] for reply in replies)
        assert len(sentences) >= 2
        assert max(sentences.values()) <= 65


def test_numbered_steps_hold_what_is_taught_the_manner_and_the_question() -> None:
    manner = Manner(mistake=MistakeKind.INCOMPLETE, interest="soccer")
    lines = framed(profile=PROFILE, manner=manner).splitlines()
    assert [line[:2] for line in lines[1:]] == ["1.", "2.", "3."]
    assert lines[1] == f"1. {ASKED}"
    assert lines[-1].endswith("?")
