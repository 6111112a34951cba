"""Examples: which conversations a baseline gives, and which are held out."""

from dataclasses import replace

import pytest

from cloning_server.examples.examples import MAX_EXAMPLE_TOKENS, LearnedExample, complete_examples, split_examples
from cloning_server.examples.situations import Situation
from mesh.errors import NoTrainableExamples
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict
from testing.lessons import ITEMS, PROFILE, baseline_of, graded
from tests.cloning_server.examples.drafts import drafts_of


@pytest.mark.parametrize(
    ("feedback", "verdict"),
    [
        ("That is not right yet. Look at the picture.", AnswerVerdict.INCORRECT),
        ("Part of your answer is right. Look at the picture.", AnswerVerdict.PARTIALLY_CORRECT),
        ("Look at the picture.", None),
    ],
)
def test_the_training_prompt_is_the_serving_prompt_with_the_verdict_that_the_teacher_states(
    base: BaseModel, feedback: str, verdict: AnswerVerdict | None
) -> None:
    drafts = drafts_of(baseline_of([graded(1, teacher_feedback=feedback)]))
    ((_, example),), _ = complete_examples(drafts, {}, base.tokenizer)
    question, reference, student_answer = ITEMS[1]
    # As the brain renders it, had the student sent this text.
    turn = Turn(role=Role.STUDENT, text=f"{question}\n\nMy answer: {student_answer}")
    assessment = AnswerAssessment(verdict=verdict, reference_answer=reference) if verdict else None
    prompt = Prompt(profile=replace(PROFILE, subject="Science"), turns=(turn,), assessment=assessment)
    assert list(example.tokens[: example.reply_start]) == encode_prompt(base.tokenizer, prompt)
    assert base.tokenizer.decode(list(example.tokens[example.reply_start : -1])) == feedback


@pytest.mark.parametrize(
    ("feedback", "places"),
    [("That is not right.", [Situation.FEEDBACK]), ("Well seen, but why?", [Situation.CHECK])],
)
def test_the_teachers_feedback_wins_over_a_distilled_reply(
    base: BaseModel, feedback: str, places: list[Situation]
) -> None:
    drafts = drafts_of(baseline_of([graded(1, teacher_feedback=feedback), graded(2)]))
    distilled = {draft.brief: "Distilled." for draft in drafts}
    completed, counts = complete_examples(drafts, distilled, base.tokenizer)
    replies = [base.tokenizer.decode(list(example.tokens[example.reply_start : -1])) for _, example in completed]
    situations = [draft.brief.situation for draft in drafts]
    assert [place for place, reply in zip(situations, replies, strict=True) if reply == feedback] == places
    assert replies.count("Distilled.") == len(drafts) - 1
    assert (counts.given, counts.feedback, counts.distilled, counts.dropped) == (2, 1, len(drafts) - 1, 0)


def test_a_response_without_a_reply_is_dropped_and_counted(base: BaseModel) -> None:
    drafts = drafts_of(baseline_of([graded(0, teacher_feedback="Well seen."), graded(1)]))
    completed, counts = complete_examples(drafts, {}, base.tokenizer)
    assert len(completed) == counts.feedback == counts.dropped == 1


def test_a_conversation_that_is_too_long_is_dropped_and_counted(base: BaseModel) -> None:
    long = graded(0, teacher_feedback="word " * MAX_EXAMPLE_TOKENS)
    completed, counts = complete_examples(drafts_of(baseline_of([long])), {}, base.tokenizer)
    assert (completed, counts.dropped) == ([], 1)


def conversations(*items: str) -> list[tuple[str, LearnedExample]]:
    def learned(item: str, token: int) -> LearnedExample:
        return LearnedExample(tokens=(token, 0), reply_start=1, item=item, situation=Situation.EXPLAIN, verdict=None)

    return [(item, learned(item, index)) for index, item in enumerate(items)]


def test_no_question_is_both_trained_on_and_held_out(base: BaseModel) -> None:
    completed = conversations(*[f"item{index % 7}" for index in range(40)])
    _, counts = complete_examples([], {}, base.tokenizer)
    split = split_examples(completed, counts, heldout_share=0.3, seed=3)
    item_of: dict[Example, str] = {example: item for item, example in completed}
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
    drafts = drafts_of(baseline_of([response, shouted]))
    assert {draft.response for draft in drafts} == {0, 1}
    assert len({draft.item for draft in drafts}) == 1


@pytest.mark.parametrize("items", [(), ("one",), ("one", "one")])
def test_fewer_than_two_items_cannot_be_trained_on(base: BaseModel, items: tuple[str, ...]) -> None:
    _, counts = complete_examples([], {}, base.tokenizer)
    with pytest.raises(NoTrainableExamples):
        split_examples(conversations(*items), counts, heldout_share=0.15, seed=0)
