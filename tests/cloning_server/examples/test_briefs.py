"""Briefs: which situations a response gives, and what the teacher is told of each."""

from dataclasses import replace

import pytest

from cloning_server.clone import BaselineResponse
from cloning_server.examples.examples import Draft, draft_examples
from cloning_server.examples.situations import Situation
from cloning_server.examples.teacher import task_of
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.examples.verdicts import ResponseVerdict, verdict_of
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, TeachingPolicy, WritingLevel
from testing.lessons import ITEMS, baseline_of, graded
from tests.cloning_server.examples.drafts import answer, drafts_in, drafts_of, only_draft, question_with


@pytest.mark.parametrize(
    ("question", "reference", "said"),
    [
        ("What is 6 x 7?", "42", "6 x 7 = 42."),
        ("What is 6 x 7?", "41", "The answer is 41."),
        ("Which metal is it?", "Iron.", "The answer is Iron."),
        ("How long is it?", "3 cm", "The answer is 3 cm."),
        ("What do plants do?", "Plants grow.", "Plants grow."),
    ],
)
def test_a_right_answer_is_taught_in_a_sentence_and_told_as_it_is(question: str, reference: str, said: str) -> None:
    response = answer(question=question, reference_answer=reference, is_correct=True)
    assert only_draft(Situation.EXPLAIN, response).brief.reference == said
    (feedback,) = drafts_in(Situation.FEEDBACK, response)
    assert feedback.prompt.assessment is not None
    assert feedback.prompt.assessment.reference_answer == reference


def test_an_answer_of_which_nothing_is_known_gets_no_feedback_but_a_way_to_check_it() -> None:
    drafts = drafts_of(baseline_of([graded(1, is_correct=None)]))
    assert [draft.brief.situation for draft in drafts] == [Situation.EXPLAIN, Situation.CHECK, Situation.HINT]
    assert all(draft.prompt.assessment is None for draft in drafts)


def test_only_feedback_tells_an_answer_right_and_only_to_one_who_has_it_or_asks_for_it() -> None:
    responses = [
        question_with(situation, is_correct=True, reference_answer="It pumps blood.", skill="life")
        for situation in (Situation.CHECK, Situation.HINT)
    ]
    says_answer = {draft.brief.situation: bool(draft.brief.reference) for draft in drafts_of(baseline_of(responses))}
    assert says_answer == {
        Situation.EXPLAIN: True,
        Situation.FEEDBACK: True,
        Situation.CHECK: False,
        Situation.HINT: False,
    }
    assert only_draft(Situation.FEEDBACK, replace(responses[0], is_correct=False)).brief.reference == ""


def test_scores_of_0_and_1_out_of_1_tell_right_answers_from_wrong_ones() -> None:
    responses = [graded(index, is_correct=None, score=score) for index, score in enumerate((1.0, 1.0, 1.0, 0.0))]
    drafts = drafts_of(replace(baseline_of(responses), max_score=1.0))
    verdicts = [draft.brief.verdict for draft in drafts if draft.brief.situation is Situation.FEEDBACK]
    # The last question is also told with its right answer.
    assert verdicts == [AnswerVerdict.CORRECT] * 3 + [AnswerVerdict.INCORRECT, AnswerVerdict.CORRECT]


@pytest.mark.parametrize(
    ("reference", "student_answer", "verdict"),
    [
        ("1/2", "0.5", ResponseVerdict.CORRECT),
        ("1000", "1,000", ResponseVerdict.CORRECT),
        ("56", "I think it is 56", ResponseVerdict.CORRECT),
        ("56", "54", ResponseVerdict.INCORRECT),
        ("1/2", "1/3", ResponseVerdict.INCORRECT),
        ("1/3", "0.33", ResponseVerdict.UNKNOWN),
        ("56", "a lot", ResponseVerdict.UNKNOWN),
        ("Gravity.", "5", ResponseVerdict.UNKNOWN),
        ("", "5", ResponseVerdict.UNKNOWN),
    ],
)
def test_without_a_verdict_and_a_score_numbers_are_compared_as_numbers(
    reference: str, student_answer: str, verdict: ResponseVerdict
) -> None:
    response = BaselineResponse(question="q", student_answer=student_answer, reference_answer=reference)
    assert verdict_of(response) is verdict
    told = [draft.brief.verdict for draft in drafts_in(Situation.FEEDBACK, response)]
    assert told == ([] if verdict is ResponseVerdict.UNKNOWN else [AnswerVerdict(verdict.value)])


def test_a_skill_is_supported_by_all_its_answers_and_no_others() -> None:
    weak = [graded(index, skill="weak") for index in range(3)]
    strong = [graded(index, skill="strong", is_correct=True) for index in range(3, 6)]
    drafts = drafts_in(Situation.FEEDBACK, *weak, *strong)
    assert [draft.brief.scaffold for draft in drafts] == [Scaffold.RECAP] * 3 + [Scaffold.EXTENSION] * 3


def test_the_policy_that_is_given_shapes_the_replies_and_a_skill_that_it_does_not_name_goes_on_steadily() -> None:
    record = baseline_of([graded(index, skill="known") for index in range(6)])
    heldout = baseline_of([graded(0, skill="known", is_correct=True), graded(1, skill="new", is_correct=True)])
    drafts = draft_examples(heldout, compute_policy(record))
    scaffolds = {(draft.response, draft.brief.scaffold) for draft in drafts}
    assert scaffolds == {(0, Scaffold.RECAP), (1, Scaffold.STEADY)}


def test_every_brief_has_the_manner_of_the_policy_and_one_of_the_interests() -> None:
    baseline = baseline_of([graded(index) for index in range(6)])
    unknown = compute_policy(baseline_of([]))
    policy = TeachingPolicy(
        writing=replace(unknown.writing, level=WritingLevel.BELOW),
        scaffolding=unknown.scaffolding,
        mistakes=replace(unknown.mistakes, kind=MistakeKind.REVERSED),
        guidance=replace(unknown.guidance, level=GuidanceLevel.MUCH),
        interests=("soccer", "drums"),
    )
    manners = [draft.brief.manner for draft in draft_examples(baseline, policy)]
    assert {(manner.writing, manner.mistake, manner.guidance) for manner in manners} == {
        (WritingLevel.BELOW, MistakeKind.REVERSED, GuidanceLevel.MUCH)
    }
    assert {manner.interest for manner in manners} == {"soccer", "drums"}


def test_a_question_that_went_wrong_is_also_told_with_its_right_answer() -> None:
    def feedback_of(response: BaselineResponse) -> list[Draft]:
        drafts = drafts_of(baseline_of([response]))
        return [draft for draft in drafts if draft.brief.situation is Situation.FEEDBACK]

    wrong, right = feedback_of(graded(0, is_correct=False))
    reference = ITEMS[0][1]
    assert (wrong.brief.verdict, right.brief.verdict) == (AnswerVerdict.INCORRECT, AnswerVerdict.CORRECT)
    assert (wrong.brief.reference, right.brief.reference) == ("", reference)
    assert right.prompt.turns[-1].text == f"{ITEMS[0][0]}\n\nMy answer: {reference}"
    assert right.prompt.assessment == AnswerAssessment(verdict=AnswerVerdict.CORRECT, reference_answer=reference)
    assert not right.brief.is_private
    assert len(feedback_of(graded(0, is_correct=True))) == 1
    assert len(feedback_of(graded(0, is_correct=False, reference_answer=""))) == 1


def test_without_a_reference_a_right_answer_is_the_reference_and_private() -> None:
    drafts = drafts_of(
        baseline_of([graded(0, reference_answer="", is_correct=True), graded(1, reference_answer=""), graded(2)])
    )
    references = {
        (draft.response, draft.brief.situation): (draft.brief.reference, draft.brief.is_private)
        for draft in drafts
        # Not the right answer that nobody gave.
        if draft.brief.verdict is not AnswerVerdict.CORRECT or draft.response == 0
    }
    assert references == {
        (0, Situation.EXPLAIN): ("It beats.", True),
        (0, Situation.FEEDBACK): ("It beats.", True),
        (0, Situation.CHECK): ("", False),
        (1, Situation.FEEDBACK): ("", False),
        (1, Situation.CHECK): ("", False),
        (1, Situation.HINT): ("", False),
        (2, Situation.EXPLAIN): (ITEMS[2][1], False),
        (2, Situation.FEEDBACK): ("", False),
        (2, Situation.CHECK): ("", False),
    }


@pytest.mark.parametrize("is_correct", [True, False, None])
@pytest.mark.parametrize("reference", ["It pumps blood.", ""])
def test_a_lesson_that_is_shared_holds_no_word_of_the_student(reference: str, is_correct: bool | None) -> None:  # noqa: FBT001
    response = question_with(Situation.HINT, is_correct=is_correct, reference_answer=reference)
    baseline = replace(
        baseline_of([replace(response, student_answer="xylophone", skill="violin")]), interests=("marimba",)
    )
    for draft in drafts_of(baseline):
        assert not draft.brief.is_private or (is_correct and not reference)
        # What classmates share is the teacher's task alone.
        assert ("xylophone" in repr(task_of(draft.brief))) is draft.brief.is_private
        assert "marimba" not in repr(task_of(draft.brief))
        assert "violin" not in repr(task_of(draft.brief))
