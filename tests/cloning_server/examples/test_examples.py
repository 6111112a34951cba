"""Examples: which conversations a baseline gives, and which are held out."""

from dataclasses import replace

import pytest

from cloning_server.clone import BaselineResponse
from cloning_server.examples.examples import (
    MAX_EXAMPLE_TOKENS,
    Band,
    ResponseVerdict,
    band_of,
    complete_examples,
    draft_examples,
    split_examples,
    verdict_of,
)
from mesh.errors import NoTrainableExamples
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.profile import StudentProfile
from testing.lessons import ITEMS, PROFILE, baseline_of, commented, graded


def answer(**facts: object) -> BaselineResponse:
    return BaselineResponse(question="q", student_answer="a", **facts)  # type: ignore[arg-type] # any field


def test_the_training_prompt_is_the_serving_prompt(base: BaseModel) -> None:
    drafts = draft_examples(commented(2))
    completed, _ = complete_examples(drafts, {}, base.tokenizer)
    question, _, student_answer = ITEMS[0]
    # As the brain renders it, had the student sent this text.
    turn = Turn(role=Role.STUDENT, text=f"{question}\n\nMy answer: {student_answer}")
    served = encode_prompt(base.tokenizer, Prompt(profile=replace(PROFILE, subject="Science"), turns=(turn,)))
    _, example = completed[0]
    assert list(example.tokens[: example.reply_start]) == served


def test_the_teachers_feedback_wins_over_a_distilled_reply(base: BaseModel) -> None:
    drafts = draft_examples(baseline_of([graded(0, teacher_feedback="Well seen."), graded(1)]))
    distilled = {draft.brief: "Distilled." for draft in drafts}
    completed, counts = complete_examples(drafts, distilled, base.tokenizer)
    replies = [base.tokenizer.decode(list(example.tokens[example.reply_start : -1])) for _, example in completed]
    assert replies == ["Well seen.", "Distilled."]
    assert (counts.given, counts.feedback, counts.distilled, counts.dropped) == (2, 1, 1, 0)


def test_a_response_without_a_reply_is_dropped_and_counted(base: BaseModel) -> None:
    drafts = draft_examples(baseline_of([graded(0, teacher_feedback="Well seen."), graded(1)]))
    completed, counts = complete_examples(drafts, {}, base.tokenizer)
    assert len(completed) == counts.feedback == counts.dropped == 1


def test_a_conversation_that_is_too_long_is_dropped_and_counted(base: BaseModel) -> None:
    long = graded(0, teacher_feedback="word " * MAX_EXAMPLE_TOKENS)
    completed, counts = complete_examples(draft_examples(baseline_of([long])), {}, base.tokenizer)
    assert (completed, counts.dropped) == ([], 1)


def test_the_subject_of_an_item_is_the_subject_of_its_prompt() -> None:
    drafts = draft_examples(baseline_of([graded(0, subject="Math"), graded(1)]))
    assert [draft.prompt.profile.subject for draft in drafts] == ["Math", "Science"]


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (answer(is_correct=True, score=0.0), ResponseVerdict.CORRECT),
        (answer(is_correct=False, score=100.0), ResponseVerdict.INCORRECT),
        (answer(score=50.0), ResponseVerdict.CORRECT),
        (answer(score=49.9), ResponseVerdict.INCORRECT),
        (answer(), ResponseVerdict.UNKNOWN),
    ],
)
def test_the_verdict_is_is_correct_or_follows_from_the_score(
    response: BaselineResponse, verdict: ResponseVerdict
) -> None:
    assert verdict_of(response) is verdict


@pytest.mark.parametrize(
    ("score", "best_score", "verdict"),
    [
        (1.0, 1.0, ResponseVerdict.CORRECT),
        (0.5, 1.0, ResponseVerdict.CORRECT),
        (0.0, 1.0, ResponseVerdict.INCORRECT),
        (10.0, 20.0, ResponseVerdict.CORRECT),
        (9.5, 20.0, ResponseVerdict.INCORRECT),
        (99.0, 200.0, ResponseVerdict.INCORRECT),
        (0.0, 5e-324, ResponseVerdict.INCORRECT),
        (5e-324, 5e-324, ResponseVerdict.CORRECT),
        (1.7e308, 1.7e308, ResponseVerdict.CORRECT),
    ],
)
def test_half_of_the_best_score_is_a_right_answer(score: float, best_score: float, verdict: ResponseVerdict) -> None:
    assert verdict_of(answer(score=score), best_score=best_score) is verdict


def test_scores_of_0_and_1_out_of_1_tell_right_answers_from_wrong_ones() -> None:
    responses = [graded(index, is_correct=None, score=score) for index, score in enumerate((1.0, 1.0, 1.0, 0.0))]
    drafts = draft_examples(replace(baseline_of(responses), max_score=1.0))
    assert [draft.brief.verdict for draft in drafts] == [ResponseVerdict.CORRECT] * 3 + [ResponseVerdict.INCORRECT]
    assert {(draft.brief.band, draft.brief.is_guided) for draft in drafts} == {(band_of(correct=3, judged=4), False)}


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
    (draft,) = draft_examples(baseline_of([response]))
    assert (draft.brief.verdict, draft.brief.reference) == (verdict, reference)


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        ({"is_correct": False}, ResponseVerdict.INCORRECT),
        ({"score": 0.0}, ResponseVerdict.INCORRECT),
        ({"score": 100.0}, ResponseVerdict.CORRECT),
    ],
)
def test_a_verdict_or_a_score_that_is_given_stands_whatever_the_numbers_are(
    facts: dict[str, object], verdict: ResponseVerdict
) -> None:
    assert verdict_of(replace(answer(reference_answer="1/2", **facts), student_answer="0.5")) is verdict


@pytest.mark.parametrize(
    ("correct", "judged", "band"),
    [
        (2, 9, Band.STRUGGLING),
        (0, 2, Band.STRUGGLING),
        (0, 1, Band.DEVELOPING),
        (0, 0, Band.DEVELOPING),
        (1, 1, Band.DEVELOPING),
        (9, 9, Band.SECURE),
    ],
)
def test_a_record_has_a_band_that_few_answers_leave_in_the_middle(correct: int, judged: int, band: Band) -> None:
    assert band_of(correct=correct, judged=judged) is band


def test_a_skill_is_judged_by_all_its_answers_and_no_others() -> None:
    weak = [graded(index, skill="weak") for index in range(3)]
    strong = [graded(index, skill="strong", is_correct=True) for index in range(3, 6)]
    bands = [draft.brief.band for draft in draft_examples(baseline_of([*weak, *strong]))]
    assert bands == [Band.STRUGGLING] * 3 + [Band.SECURE] * 3


@pytest.mark.parametrize(("right", "wrong", "guided"), [(2, 3, {True}), (2, 2, {False}), (3, 2, {False})])
def test_a_student_is_guided_in_all_replies_if_fewer_than_half_of_the_answers_are_right(
    right: int, wrong: int, guided: set[bool]
) -> None:
    verdicts = [True] * right + [False] * wrong
    responses = [
        graded(index, skill=f"skill{index}", is_correct=is_correct) for index, is_correct in enumerate(verdicts)
    ]
    drafts = draft_examples(baseline_of([*responses, graded(5, is_correct=None)]))
    assert {draft.brief.is_guided for draft in drafts} == guided


def test_a_skill_is_judged_by_another_record_if_there_is_one_and_is_in_the_middle_without_answers() -> None:
    baseline = baseline_of([graded(0, skill="known", is_correct=True), graded(1, skill="new", is_correct=True)])
    record = [graded(index, skill="known") for index in range(3)]
    bands = [draft.brief.band for draft in draft_examples(baseline, record=record)]
    assert bands == [Band.STRUGGLING, Band.DEVELOPING]


def test_without_a_reference_a_right_answer_is_the_reference_and_private() -> None:
    right, wrong, with_reference = draft_examples(
        baseline_of([graded(0, reference_answer="", is_correct=True), graded(1, reference_answer=""), graded(2)])
    )
    assert (right.brief.reference, right.brief.is_private) == ("It beats.", True)
    assert (wrong.brief.reference, wrong.brief.is_private) == ("", False)
    assert (with_reference.brief.reference, with_reference.brief.is_private) == (ITEMS[2][1], False)


def test_a_lesson_holds_no_word_of_the_student() -> None:
    response = replace(graded(0), student_answer="xylophone")
    assert "xylophone" not in repr(draft_examples(baseline_of([response]))[0].brief)


def conversations(*items: str) -> list[tuple[str, Example]]:
    return [(item, Example(tokens=(index, 0), reply_start=1)) for index, item in enumerate(items)]


def test_no_question_is_both_trained_on_and_held_out(base: BaseModel) -> None:
    completed = conversations(*[f"item{index % 7}" for index in range(40)])
    _, counts = complete_examples([], {}, base.tokenizer)
    split = split_examples(completed, counts, heldout_share=0.3, seed=3)
    item_of = {example: item for item, example in completed}
    assert {item_of[example] for example in split.train}.isdisjoint(item_of[example] for example in split.heldout)
    assert (split.counts.train, split.counts.heldout) == (len(split.train), len(split.heldout))
    assert len(split.train) + len(split.heldout) == len(completed)
    assert len({item_of[example] for example in split.heldout}) == 2
    assert split == split_examples(completed, counts, heldout_share=0.3, seed=3)


def test_the_items_that_measure_a_version_were_held_out_of_versions_with_fewer_answers(base: BaseModel) -> None:
    _, counts = complete_examples([], {}, base.tokenizer)
    all_examples = conversations(*[f"item{index}" for index in range(9)])
    (heldout,) = split_examples(all_examples, counts, heldout_share=0.15, seed=0).heldout
    for few in range(2, 9):
        for fewer in (all_examples[:few], all_examples[-few:]):
            assert heldout not in split_examples(fewer, counts, heldout_share=0.15, seed=0).train


def test_questions_that_differ_in_case_and_spacing_are_the_same_item() -> None:
    response = graded(0)
    shouted = replace(response, question=f"  {response.question.upper()} ")
    first, second = draft_examples(baseline_of([response, shouted]))
    assert first.item == second.item


@pytest.mark.parametrize("items", [(), ("one",), ("one", "one")])
def test_fewer_than_two_items_cannot_be_trained_on(base: BaseModel, items: tuple[str, ...]) -> None:
    _, counts = complete_examples([], {}, base.tokenizer)
    with pytest.raises(NoTrainableExamples):
        split_examples(conversations(*items), counts, heldout_share=0.15, seed=0)


def test_an_empty_profile_makes_a_prompt() -> None:
    baseline = replace(commented(1), profile=StudentProfile())
    assert draft_examples(baseline)[0].prompt.profile == StudentProfile()
