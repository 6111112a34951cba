"""Prompts: what stands in the conversations that a clone learns from, before the reply."""

from dataclasses import replace

from cloning_server.examples.situations import Situation
from mesh.lm.chat import Role, Turn
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict
from mesh.tutoring.profile import StudentProfile
from testing.lessons import ITEMS, baseline_of, commented, graded
from tests.cloning_server.examples.drafts import answer, drafts_in, drafts_of, only_draft, question_with


def test_feedback_has_the_verdict_and_the_reference_in_its_prompt() -> None:
    right, wrong = drafts_in(Situation.FEEDBACK, graded(0, is_correct=True), graded(1))
    assert right.prompt.assessment == AnswerAssessment(verdict=AnswerVerdict.CORRECT, reference_answer=ITEMS[0][1])
    assert wrong.prompt.assessment == AnswerAssessment(verdict=AnswerVerdict.INCORRECT, reference_answer=ITEMS[1][1])
    assert wrong.prompt.turns == (Turn(role=Role.STUDENT, text=f"{ITEMS[1][0]}\n\nMy answer: {ITEMS[1][2]}"),)


def test_a_question_to_explain_stands_alone_in_its_prompt() -> None:
    prompt = only_draft(Situation.EXPLAIN, graded(0, is_correct=True, teacher_feedback="Well seen.")).prompt
    assert (prompt.turns, prompt.assessment, prompt.facts) == ((Turn(role=Role.STUDENT, text=ITEMS[0][0]),), None, ())


def test_a_prompt_tells_nothing_of_an_answer_to_check_and_of_a_student_who_is_stuck() -> None:
    response, another = (
        question_with(situation, is_correct=False, reference_answer="It pumps blood.")
        for situation in (Situation.CHECK, Situation.HINT)
    )
    checked, stuck = only_draft(Situation.CHECK, response), only_draft(Situation.HINT, another)
    assert checked.prompt.assessment is stuck.prompt.assessment is None
    assert checked.brief.verdict is stuck.brief.verdict is None
    assert checked.prompt.turns[-1].text == f"{response.question}\n\nMy answer: a"
    assert "My answer" not in stuck.prompt.turns[-1].text


def test_what_code_computes_is_in_the_prompt_as_in_serving() -> None:
    product = answer(question="What is 6 x 7?", student_answer="45", reference_answer="42", is_correct=False)
    prompts = {draft.brief.situation: draft.prompt for draft in reversed(drafts_of(baseline_of([product])))}
    assert {prompt.facts for prompt in prompts.values()} == {("6 x 7 = 42",)}
    # Serving judges such an answer, so nobody ever asks to have it checked without a verdict.
    assert set(prompts) == {Situation.EXPLAIN, Situation.FEEDBACK}
    assert prompts[Situation.FEEDBACK].assessment == AnswerAssessment(
        verdict=AnswerVerdict.INCORRECT, reference_answer="42"
    )


def test_the_subject_of_an_item_is_the_subject_of_its_prompt() -> None:
    drafts = drafts_of(baseline_of([graded(0, subject="Math"), graded(1)]))
    subjects = {(draft.response, draft.prompt.profile.subject) for draft in drafts}
    assert subjects == {(0, "Math"), (1, "Science")}


def test_no_policy_is_in_a_prompt() -> None:
    baseline = replace(baseline_of([graded(index, skill="life") for index in range(6)]), interests=("soccer",))
    for draft in drafts_of(baseline):
        assert draft.brief.manner.interest == "soccer"
        assert "soccer" not in repr(draft.prompt)


def test_an_empty_profile_makes_a_prompt() -> None:
    baseline = replace(commented(1), profile=StudentProfile())
    assert drafts_of(baseline)[0].prompt.profile == StudentProfile()
