"""Examples: which conversations a baseline gives, and which are held out."""

from dataclasses import replace

import pytest

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.examples.examples import (
    MAX_EXAMPLE_TOKENS,
    Draft,
    LearnedExample,
    complete_examples,
    draft_examples,
    split_examples,
)
from cloning_server.examples.situations import Situation
from cloning_server.examples.teacher import task_of
from cloning_server.examples.teaching_policy import compute_policy
from cloning_server.examples.verdicts import ResponseVerdict, verdict_of
from mesh.errors import NoTrainableExamples
from mesh.lm.chat import Example, Prompt, Role, Turn, encode_prompt
from mesh.main_brain.base import BaseModel
from mesh.tutoring.assessment import AnswerAssessment, AnswerVerdict
from mesh.tutoring.policy import GuidanceLevel, MistakeKind, Scaffold, TeachingPolicy, WritingLevel
from mesh.tutoring.profile import StudentProfile
from testing.lessons import ITEMS, PROFILE, baseline_of, commented, graded


def answer(**facts: object) -> BaselineResponse:
    return BaselineResponse(**{"question": "q", "student_answer": "a", **facts})  # type: ignore[arg-type] # any field


def drafts_of(baseline: Baseline) -> tuple[Draft, ...]:
    return draft_examples(baseline, compute_policy(baseline))


def drafts_in(situation: Situation, *responses: BaselineResponse) -> list[Draft]:
    """The drafts of one situation that these responses give, without those of a right answer that nobody gave."""
    drafts = [draft for draft in drafts_of(baseline_of(responses)) if draft.brief.situation is situation]
    return list({draft.response: draft for draft in reversed(drafts)}.values())[::-1]


def only_draft(situation: Situation, response: BaselineResponse) -> Draft:
    (draft,) = drafts_in(situation, response)
    return draft


def question_with(*situations: Situation, **facts: object) -> BaselineResponse:
    """A response to a question that also gives these situations, which the question alone decides."""
    return next(
        response
        for number in range(100)
        if all(
            drafts_in(situation, response := answer(**facts, question=f"What is part {number}?"))
            for situation in situations
        )
    )


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


def test_the_subject_of_an_item_is_the_subject_of_its_prompt() -> None:
    drafts = drafts_of(baseline_of([graded(0, subject="Math"), graded(1)]))
    subjects = {(draft.response, draft.prompt.profile.subject) for draft in drafts}
    assert subjects == {(0, "Math"), (1, "Science")}


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


def test_no_policy_is_in_a_prompt() -> None:
    baseline = replace(baseline_of([graded(index, skill="life") for index in range(6)]), interests=("soccer",))
    for draft in drafts_of(baseline):
        assert draft.brief.manner.interest == "soccer"
        assert "soccer" not in repr(draft.prompt)


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


def test_an_empty_profile_makes_a_prompt() -> None:
    baseline = replace(commented(1), profile=StudentProfile())
    assert drafts_of(baseline)[0].prompt.profile == StudentProfile()
