"""The clone of products alone, and what is counted in clones' replies to bare questions, here written by hand."""

import pytest

from benchmarks.bare_questions import clone_figure, conversations_with, figures_of, product_baseline
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.profile import Disability, StudentProfile

JUDGE, STUCK, CHECK = "replies_that_judge", "replies_that_circle_or_are_empty", "replies_that_begin_as_a_check"
EXPLAINS = "Water vapor rises, cools and turns into tiny drops. Many drops together are a cloud."


def counts(*replies: str) -> dict[str, float]:
    return {figure.figure: figure.value for figure in figures_of(replies)}


def test_a_third_of_the_products_is_wrong_and_each_is_marked_as_it_is() -> None:
    responses = product_baseline().responses
    assert sum(response.is_correct is False for response in responses) == len(responses) // 3
    assert all((response.student_answer == response.reference_answer) == response.is_correct for response in responses)


@pytest.mark.parametrize(
    "reply",
    [
        EXPLAINS,
        "Yes. Ice is frozen water.",
        "A right angle has 90 degrees. Check whether your answer is right.",
        "Drops form in the air. Drops fall from the cloud.",
    ],
)
def test_a_reply_that_explains_counts_nowhere(reply: str) -> None:
    assert counts(reply) == {JUDGE: 0, STUCK: 0, CHECK: 0}


@pytest.mark.parametrize(
    "reply",
    ["Your answer is right.", "Not quite. Clouds are drops of water.", "Clouds are drops of water. Well done!"],
)
def test_a_reply_that_judges_is_counted_wherever_it_does(reply: str) -> None:
    assert counts(reply, EXPLAINS) == {JUDGE: 1, STUCK: 0, CHECK: 0}


@pytest.mark.parametrize(
    "reply",
    [
        "Clouds are drops. Clouds are drops.",
        "Look at the sky and look at the sky and look at the sky and rest.",
        "",
        " \n",
        "...",
    ],
)
def test_a_reply_that_circles_or_says_nothing_is_counted(reply: str) -> None:
    assert counts(reply, EXPLAINS) == {JUDGE: 0, STUCK: 1, CHECK: 0}


@pytest.mark.parametrize("reply", ["Let's check it with the question.", "Let\u2019s see if it fits the question."])
def test_a_reply_that_begins_as_a_check_is_counted_and_one_that_ends_so_is_not(reply: str) -> None:
    assert counts(reply, f"{EXPLAINS} {reply}") == {JUDGE: 0, STUCK: 0, CHECK: 1}


def test_a_reply_that_judges_and_circles_counts_in_both() -> None:
    assert counts("Your answer is right. Your answer is right.") == {JUDGE: 1, STUCK: 1, CHECK: 0}


@pytest.mark.parametrize(("empty", "is_met"), [(1, True), (2, False)])
def test_none_may_judge_and_one_in_a_hundred_may_circle_or_be_empty(empty: int, *, is_met: bool) -> None:
    replies = [""] * empty + [EXPLAINS] * (199 - empty)
    judging, stuck, checks = figures_of(replies)
    assert (judging.met, stuck.met, checks.met) == (True, is_met, None)
    assert {figure.unit for figure in (judging, stuck, checks)} == {"of 199 replies"}
    assert figures_of([*replies, "Your answer is right."])[0].met is False


def test_a_clone_has_a_figure_of_its_own() -> None:
    figure = clone_figure("products", ["Your answer is right.", EXPLAINS, ""])
    assert (figure.value, figure.unit, figure.facts) == (1, "of 3 replies", {"clone": "products"})
    assert figure.met is None


def test_a_clone_meets_the_five_conversations_as_its_own_student_begins_them() -> None:
    profile = StudentProfile(grade="8", disability=Disability.ANXIETY)
    prompts = [question.prompt for question in conversations_with(profile)]
    assert {prompt.profile for prompt in prompts} == {profile}
    verdicts = [prompt.assessment.verdict if prompt.assessment else None for prompt in prompts]
    assert verdicts == [None, None, None, None, AnswerVerdict.CORRECT]
