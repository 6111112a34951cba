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


def every_phrase() -> Iterator[str]:
    """Yields every sentence of a frame, but for the openers that state a verdict."""
    tables = (phrases.OPENERS, phrases.HABITS, phrases.GUIDANCE, phrases.SMALL_STEPS)
    for table in tables:
        for forms in table.values():
            yield from filter(None, forms)
    yield from (*phrases.CALM, *phrases.END_MARKERS)
    yield from (form.format(interest="soccer") for form in phrases.INTERESTS)
    yield from (form.format(term="gravity") for form in phrases.TERMS)
    for scaffold, style, draw in itertools.product(Scaffold, (None, *LearningStyle), range(6)):
        yield phrases.closing_question(scaffold, style, draw=draw)


def test_every_phrase_is_one_short_plain_sentence_that_judges_nothing() -> None:
    openers = itertools.chain.from_iterable(phrases.VERDICT_OPENERS.values())
    for phrase in (*every_phrase(), *openers):
        assert len(split_sentences(phrase)) == 1, phrase
        assert count_words(phrase) <= 10, phrase
        assert all(len(word.strip(".,?")) < LONG_WORD_LETTERS for word in phrase.split()), phrase
        assert phrase[0].isupper(), phrase
        assert phrase[-1] in ".?", phrase
        for need in Disability:
            avoids = rules_of(StudentProfile(disability=need)).avoids
            assert not any(words in phrase.lower() for words in avoids), phrase
    for phrase in every_phrase():
        assert not judges(phrase), phrase


def test_every_sentence_has_several_forms() -> None:
    tables = (phrases.VERDICT_OPENERS, phrases.OPENERS, phrases.HABITS, phrases.GUIDANCE, phrases.SMALL_STEPS)
    all_forms = [*(forms for table in tables for forms in table.values()), phrases.CALM, phrases.INTERESTS]
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


@pytest.mark.parametrize("kind", phrases.HABITS)
def test_a_reply_holds_the_habit_against_the_usual_mistake_but_not_behind_a_right_answer(kind: MistakeKind) -> None:
    manner = Manner(mistake=kind)
    for (situation, verdict), draw in itertools.product(SITUATIONS, range(4)):
        reply = framed(situation=situation, verdict=verdict, manner=manner, draw=draw)
        assert any(habit in reply for habit in phrases.HABITS[kind]) is (verdict is not AnswerVerdict.CORRECT)


@pytest.mark.parametrize("level", phrases.GUIDANCE)
def test_a_reply_offers_as_much_guidance_as_the_student_asks_for(level: GuidanceLevel) -> None:
    for draw in DRAWS:
        offered = {
            each
            for each, forms in phrases.GUIDANCE.items()
            if any(form in framed(manner=Manner(guidance=level), draw=draw) for form in forms)
        }
        assert offered == {level}


@pytest.mark.parametrize("scaffold", Scaffold)
def test_a_weak_skill_gets_a_small_step_and_a_secure_one_a_step_further(scaffold: Scaffold) -> None:
    for draw in DRAWS:
        reply = framed(situation=Situation.EXPLAIN, verdict=None, scaffold=scaffold, draw=draw)
        assert steps_in(reply) == ({scaffold} if scaffold in phrases.SMALL_STEPS else set())


def steps_in(reply: str) -> set[Scaffold]:
    return {each for each, forms in phrases.SMALL_STEPS.items() if any(form in reply for form in forms)}


@pytest.mark.parametrize(("situation", "verdict"), SITUATIONS)
def test_nobody_is_sent_further_who_is_stuck_or_whose_answer_is_not_right(
    situation: Situation, verdict: AnswerVerdict | None
) -> None:
    goes_further = situation in {Situation.EXPLAIN, Situation.CHECK} or verdict is AnswerVerdict.CORRECT
    further = {phrases.closing_question(Scaffold.EXTENSION, None, draw=draw) for draw in DRAWS}
    for draw in DRAWS:
        reply = framed(situation=situation, verdict=verdict, scaffold=Scaffold.EXTENSION, draw=draw)
        assert bool(steps_in(reply)) is goes_further
        assert (split_sentences(reply)[-1] in further) is goes_further


@pytest.mark.parametrize("verdict", [AnswerVerdict.CORRECT, AnswerVerdict.INCORRECT])
def test_a_reply_gives_two_pieces_of_advice_at_most_but_a_third_where_that_keeps_each_kind_usual(
    verdict: AnswerVerdict,
) -> None:
    facts = Manner(mistake=MistakeKind.REVERSED, guidance=GuidanceLevel.LITTLE, interest="soccer")
    tables = {
        "habit": phrases.HABITS[MistakeKind.REVERSED],
        "guidance": phrases.GUIDANCE[GuidanceLevel.LITTLE],
        "interest": tuple(form.format(interest="soccer") for form in phrases.INTERESTS),
        "step": tuple(itertools.chain.from_iterable(phrases.SMALL_STEPS.values())),
    }
    replies = [
        framed(verdict=verdict, manner=facts, scaffold=scaffold, draw=draw_of(f"item {number}"))
        for scaffold, number in itertools.product(Scaffold, range(100))
    ]
    given = [{name for name, forms in tables.items() if any(form in reply for form in forms)} for reply in replies]
    piles = sum(len(names) > 2 for names in given)
    assert piles <= 0.4 * len(replies)
    assert not any("step" in names for names in given)
    shown = Counter(itertools.chain.from_iterable(given))
    due = {"guidance", "interest"} if verdict is AnswerVerdict.CORRECT else {"habit", "guidance", "interest"}
    assert all(shown[name] >= 0.6 * len(replies) for name in due)


def test_a_reply_names_the_interest_of_the_student_and_none_without_one() -> None:
    for draw in DRAWS:
        assert "rock climbing" in framed(manner=Manner(interest="rock climbing"), draw=draw)
        assert "example" not in framed(manner=Manner(), draw=draw)


def test_a_student_who_writes_above_their_grade_gets_a_term_of_what_is_taught() -> None:
    facts: dict[str, object] = {"situation": Situation.EXPLAIN, "verdict": None}
    brief = replace(BRIEF, **facts, manner=Manner(writing=WritingLevel.ABOVE))  # type: ignore[arg-type] # any field
    assert "'gravity'" in frame_reply(brief, ["Because gravity pulls the ball down."])
    assert "'" not in frame_reply(brief, ["It beats."])


def test_the_word_question_is_no_term() -> None:
    assert "'" not in framed(manner=Manner(writing=WritingLevel.ABOVE))


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
        assert any(habit in reply for habit in phrases.HABITS[MistakeKind.REVERSED])


def test_a_small_childs_short_reply_keeps_the_habit_and_leaves_out_what_is_worth_less() -> None:
    manner = Manner(mistake=MistakeKind.INCOMPLETE, guidance=GuidanceLevel.MUCH, interest="soccer")
    brief = replace(BRIEF, profile=StudentProfile(grade="K"), manner=manner, scaffold=Scaffold.RECAP)
    reply = frame_reply(brief, [ASKED, ASKED, ASKED])
    assert len(split_sentences(reply)) == 6
    assert any(habit in reply for habit in phrases.HABITS[MistakeKind.INCOMPLETE])
    assert "soccer" not in reply


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
    assert [line[:2] for line in lines[1:]] == ["1.", "2.", "3.", "4."]
    assert lines[1] == f"1. {ASKED}"
    assert lines[-1].endswith("?")
