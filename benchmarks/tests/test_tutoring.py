"""The situations, checks and figures of the tutoring benchmark; replies are written here, not decoded."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.main_brain import replies_to
from benchmarks.tutoring_checks import is_stuck, kendall_tau, settles
from benchmarks.tutoring_figures import SituationReply, figures_of, ladder_figure, sums_figure
from benchmarks.tutoring_situations import (
    CONVERSATIONS,
    GRADE_LADDER,
    LADDER_QUESTIONS,
    Situation,
    answered,
    assessed,
    conversations,
    ladder,
    made_feedback,
    sums,
    unanswered,
)
from brain_server.engine.contract import AdapterPolicy, Generation, Sampling
from curriculum.lesson import Lesson
from curriculum.library import is_held_out, load_lessons
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.judgement import agrees
from mesh.tutoring.profile import Disability
from testing.scripted.engine import ScriptedEngine

LABELS = {"correct": "it is the sun", "incorrect": "it is the moon"}
CIRCLING = (
    "",
    "...",
    "The sky is blue. The sky is blue.",
    "We go to the shop and we go to the park and we go to the lake and home.",
    "1. 1. 1. 1. 1. 1. 1.",
)
MOVING = (
    "The sky is blue because air scatters blue light.",
    "1. Draw a line.\n2. Draw a square.\n3. Count the sides. How many are there?",
)


@pytest.fixture(scope="module")
def held_out() -> list[Lesson]:
    return [lesson for lesson in load_lessons() if is_held_out(lesson)]


def with_own_replies(situations: Sequence[Situation]) -> list[SituationReply]:
    return [SituationReply(situation=situation, reply=situation.lesson_reply) for situation in situations]


def test_two_hundred_students_answer_nothing_and_nothing_is_judged_for_them(held_out: Sequence[Lesson]) -> None:
    situations = unanswered(held_out, count=200)
    assert len(situations) == 200
    assert len({situation.prompt for situation in situations}) == 200
    assert {situation.name for situation in situations} == {"explain", "hint", "frame"}
    assert all(situation.prompt.assessment is None for situation in situations)
    assert {situation.prompt.profile.disability for situation in situations} == {*Disability, None}


def test_feedback_lessons_tell_all_five_verdicts(held_out: Sequence[Lesson]) -> None:
    verdicts = {situation.prompt.assessment.verdict for situation in answered(held_out) if situation.prompt.assessment}
    assert verdicts == set(AnswerVerdict)


def test_feedback_in_the_form_of_assess_is_asked_with_the_schema_of_its_verdict(held_out: Sequence[Lesson]) -> None:
    situations = assessed(held_out)
    assert {situation.prompt.assessment.verdict for situation in situations if situation.prompt.assessment} >= {
        AnswerVerdict.CORRECT,
        AnswerVerdict.PARTIALLY_CORRECT,
        AnswerVerdict.INCORRECT,
    }
    for situation in situations:
        fields = json.loads(situation.schema)["properties"]
        is_wrong = situation.prompt.assessment and situation.prompt.assessment.verdict in {
            AnswerVerdict.INCORRECT,
            AnswerVerdict.BLANK,
            AnswerVerdict.OFF_TOPIC,
        }
        assert (fields["strengths"]["maxItems"] == 0) is bool(is_wrong)


def test_feedback_is_made_from_labelled_answers_as_many_of_each_verdict(tmp_path: Path) -> None:
    lines = [
        {"qid": "1", "question": f"Why {number}?", "reference_answers": ["Light."], "answer": answer, "label2": label}
        for number in range(5)
        for label, answer in LABELS.items()
    ]
    (tmp_path / "sciEntsBank.test-unseen-answers.jsonl").write_text("\n".join(map(json.dumps, lines)))
    situations = made_feedback(tmp_path, count=6)
    verdicts = [situation.prompt.assessment.verdict for situation in situations if situation.prompt.assessment]
    assert verdicts == [AnswerVerdict.CORRECT, AnswerVerdict.INCORRECT] * 3
    assert {situation.withheld for situation in situations} == {("Light.",)}
    assert situations[0].prompt.turns[-1].text.endswith("\n\nMy answer: it is the sun")


def test_sums_and_conversations_are_prepared_as_the_edge_does() -> None:
    verdicts = [situation.prompt.assessment.verdict for situation in sums() if situation.prompt.assessment]
    assert verdicts == [AnswerVerdict.CORRECT, AnswerVerdict.INCORRECT] * 6
    assert sums()[0].prompt.facts == ("6 x 7 = 42",)
    assert [situation.prompt.turns[-1].text for situation in conversations()] == list(CONVERSATIONS)
    assert [situation.prompt.assessment is None for situation in conversations()] == [True, True, True, True, False]


def test_the_same_thirty_questions_are_asked_for_seven_grades() -> None:
    steps = ladder()
    assert len(LADDER_QUESTIONS) == len({question for _, question in LADDER_QUESTIONS}) == 30
    assert [grade for grade, _ in steps] == [*GRADE_LADDER] * 30
    assert all(situation.prompt.profile.grade == grade for grade, situation in steps)


def test_the_lessons_own_replies_pass_every_check(held_out: Sequence[Lesson]) -> None:
    situations = [situation for situation in unanswered(held_out, count=200) if situation.lesson_reply]
    figures = list(figures_of(with_own_replies([*situations, *answered(held_out), *assessed(held_out)])))
    assert {figure.figure for figure in figures} == {
        "replies_that_judge_where_nothing_was_answered",
        "feedback_agrees_with_its_verdict",
        "replies_that_say_a_withheld_answer",
        "form_rules_met",
        *(f"form_rules_met_{disability}" for disability in Disability),
        "replies_that_circle_or_are_empty",
    }
    assert not [figure.figure for figure in figures if not figure.met]
    for alone in (answered, assessed):
        assert all(figure.met for figure in figures_of(with_own_replies(alone(held_out))))
    assert [figure.value for figure in figures if figure.baseline is not None] == [
        figure.baseline for figure in figures if figure.baseline is not None
    ]


def test_replies_that_judge_disagree_leak_or_circle_are_counted(held_out: Sequence[Lesson]) -> None:
    wrong = next(
        situation
        for situation in answered(held_out)
        if situation.prompt.assessment and situation.prompt.assessment.verdict is AnswerVerdict.INCORRECT
    )
    reply = f"Well done, your answer is right. It is {wrong.withheld[0]}. It is {wrong.withheld[0]}."
    items = [
        SituationReply(situation=unanswered(held_out, count=1)[0], reply=reply),
        SituationReply(situation=wrong, reply=reply),
    ]
    figures = {figure.figure: figure for figure in figures_of(items)}
    assert figures["replies_that_judge_where_nothing_was_answered"].value == 1
    assert figures["feedback_agrees_with_its_verdict"].value == 0
    assert figures["replies_that_say_a_withheld_answer"].value == 1
    assert figures["replies_that_circle_or_are_empty"].value == 1


def test_an_answer_that_the_student_said_is_no_secret(held_out: Sequence[Lesson]) -> None:
    hint = next(situation for situation in unanswered(held_out, count=200) if situation.name == "hint")
    turn = replace(hint.prompt.turns[-1], text="I put a dash, what is the other mark?")
    situation = replace(hint, prompt=replace(hint.prompt, turns=(turn,)), withheld=("ellipsis", "dash"))

    def share(reply: str) -> float:
        figures = figures_of([SituationReply(situation=situation, reply=reply)])
        return next(figure.value for figure in figures if figure.figure == "replies_that_say_a_withheld_answer")

    assert share("A dash shows a break.") == 0
    assert share("It is an ellipsis, no dash.") == 1


def test_levels_that_follow_the_grade_have_a_high_tau() -> None:
    texts = {grade: "The cat sat. " + "extraordinarily " * place for place, grade in enumerate(GRADE_LADDER)}
    steps = [
        (grade, SituationReply(situation=situation, reply=texts[grade]))
        for grade, situation in ladder(LADDER_QUESTIONS[:2])
    ]
    figure = ladder_figure(steps)
    assert figure.value > 0.9
    assert figure.facts["mean_tau_of_a_question"] == pytest.approx(1.0)
    assert ladder_figure([(grade, replace(item, reply="The cat sat.")) for grade, item in steps]).value == 0


def test_a_sum_is_settled_by_confirming_or_correcting_it() -> None:
    replies = ("Yes, 42 is right.", "That is not right. Count again.") * 6
    items = [SituationReply(situation=situation, reply=reply) for situation, reply in zip(sums(), replies, strict=True)]
    assert (sums_figure(items).value, sums_figure(items).met) == (12, True)
    assert sums_figure([replace(item, reply="Well done, your answer is right.") for item in items]).value == 6
    assert settles("6 rows of 7 make 42.", AnswerVerdict.INCORRECT, "42")
    assert not settles("6 rows of 7 make 42.", AnswerVerdict.CORRECT, "42")


def test_a_blank_answer_is_neither_praised_nor_partly_right() -> None:
    assert agrees("Let's begin with one small step. What do you see?", AnswerVerdict.BLANK)
    assert not agrees("Well done, your answer is right.", AnswerVerdict.BLANK)


@pytest.mark.parametrize("reply", CIRCLING)
def test_a_reply_that_circles_or_says_nothing_is_noticed(reply: str) -> None:
    assert is_stuck(reply)


@pytest.mark.parametrize("reply", MOVING)
def test_a_reply_that_goes_on_is_not_stuck(reply: str) -> None:
    assert not is_stuck(reply)


def test_tau_counts_pairs_and_takes_ties_into_account() -> None:
    assert kendall_tau([(1, 1), (2, 2), (3, 3)]) == 1
    assert kendall_tau([(1, 3), (2, 2), (3, 1)]) == -1
    # By hand: 4 of 6 pairs agree, none disagrees, two are tied in the first order.
    assert kendall_tau([(1, 1), (1, 2), (2, 3), (2, 4)]) == pytest.approx(4 / 24**0.5)


async def test_replies_come_from_the_main_brain_in_order_with_seeds_of_their_own() -> None:
    engine = ScriptedEngine()
    generations = [Generation(prompt=situation.prompt) for situation in sums()]
    replies = await replies_to(engine, generations, Sampling(temperature=0.0), title="sums")
    assert [reply.text for reply in replies] == ["Plants make food."] * 12
    assert {generation.policy for generation in engine.generations} == {AdapterPolicy.BASE_ONLY}
    assert sorted(generation.sampling.seed or 0 for generation in engine.generations) == list(range(12))
