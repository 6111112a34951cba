"""The teaching policy: what a student's answers say about how to teach them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.examples.teaching_policy import compute_policy
from mesh.tutoring.policy import (
    GuidanceLevel,
    MistakeKind,
    Mistakes,
    Scaffold,
    TeachingPolicy,
    WritingLevel,
)
from mesh.tutoring.profile import StudentProfile

# Right answers of 11 words: pupils of grades 3 to 6 write about as many.
REFERENCE = "The plant needs sunlight because it makes its food from it."
SHORT = "It makes food."
USUAL = "The plant needs the sunlight because it makes food from it."
LONG = (
    "The plant needs a lot of sunlight every day because its green leaves take the light in and then they make the "
    "food from it that the plant eats when it grows."
)


def policy_of(
    answers: Sequence[str], *, grade: str | None = "4", max_score: float | None = None, **facts: object
) -> TeachingPolicy:
    """The policy of a student who gave these answers to one question, wrong unless the facts say otherwise."""
    fields: dict[str, object] = {"reference_answer": REFERENCE, "is_correct": False, **facts}
    responses = [
        BaselineResponse(question="Why does a plant need sunlight?", student_answer=answer, **fields)  # type: ignore[arg-type] # any field
        for answer in answers
    ]
    return compute_policy(baseline_of(responses, grade=grade, max_score=max_score))


def baseline_of(
    responses: Sequence[BaselineResponse], *, grade: str | None = "4", max_score: float | None = None
) -> Baseline:
    return Baseline(profile=StudentProfile(grade=grade), responses=tuple(responses), max_score=max_score)


def mistakes_of(answers: Sequence[str], **facts: object) -> Mistakes:
    return policy_of(answers, **facts).mistakes  # type: ignore[arg-type] # any field


@pytest.mark.parametrize(
    ("answer", "level"), [(SHORT, WritingLevel.BELOW), (USUAL, WritingLevel.AT), (LONG, WritingLevel.ABOVE)]
)
def test_writing_is_compared_with_what_pupils_of_the_grade_write(answer: str, level: WritingLevel) -> None:
    writing = policy_of([answer] * 6).writing
    assert (writing.level, writing.grade, writing.answers) == (level, "4", 6)


@pytest.mark.parametrize(
    ("grade", "level"), [("1", WritingLevel.ABOVE), ("5", WritingLevel.AT), ("12", WritingLevel.BELOW)]
)
def test_the_same_writing_is_more_in_an_early_grade_than_in_a_late_one(grade: str, level: WritingLevel) -> None:
    assert policy_of([USUAL] * 6, grade=grade).writing.level is level


def test_without_a_grade_the_level_of_writing_is_unknown() -> None:
    assert policy_of([USUAL] * 9, grade=None).writing.level is WritingLevel.UNKNOWN


def test_answers_that_need_no_sentence_say_nothing_about_writing() -> None:
    writing = policy_of(["42"] * 9, reference_answer="42").writing
    assert (writing.level, writing.answers) == (WritingLevel.UNKNOWN, 0)
    assert policy_of(["Paris"] * 9, reference_answer="").writing.answers == 0


def test_sums_are_no_writing() -> None:
    writing = policy_of(["7", "3 + 4 = 7", "12 - 5 = 7"] * 3, reference_answer="3 + 4 = 7, and 7 - 4 = 3").writing
    assert (writing.level, writing.answers) == (WritingLevel.UNKNOWN, 0)
    with_sum, plain = (policy_of([answer] * 6).writing for answer in (f"{USUAL} 3 + 4 + 5 + 6 = 18", USUAL))
    assert with_sum.words == plain.words


def test_answers_without_a_word_are_not_written_in_words() -> None:
    writing = policy_of(["\U0001f600 \U0001f331"] * 8).writing
    assert (writing.level, writing.answers) == (WritingLevel.UNKNOWN, 0)


def test_five_answers_are_not_enough_for_any_dimension() -> None:
    policy = policy_of([SHORT] * 5, skill="plants")
    assert policy.writing.level is WritingLevel.UNKNOWN
    assert policy.scaffolding.skills == ()
    assert policy.mistakes.kind is MistakeKind.UNKNOWN
    assert policy.guidance.level is GuidanceLevel.UNKNOWN


def test_support_follows_the_record_in_each_skill() -> None:
    records = {"plants": [False] * 4, "sound": [True, False], "motion": [True] * 4, "": [True]}
    responses = [
        BaselineResponse(question="Why?", student_answer=SHORT, subject="Science", skill=skill, is_correct=is_correct)
        for skill, record in records.items()
        for is_correct in record
    ]
    scaffolding = compute_policy(baseline_of(responses)).scaffolding
    assert scaffolding.judged == 11
    assert [(support.skill, support.scaffold, support.correct, support.judged) for support in scaffolding.skills] == [
        ("motion", Scaffold.EXTENSION, 4, 4),
        ("plants", Scaffold.RECAP, 0, 4),
        ("sound", Scaffold.STEADY, 1, 2),
    ]


def test_a_score_is_judged_by_the_best_score() -> None:
    assert policy_of([SHORT] * 6, max_score=10.0, is_correct=None, score=6.0).mistakes.wrong == 0
    mistakes = policy_of([SHORT] * 6, max_score=10.0, is_correct=None, score=4.0).mistakes
    assert (mistakes.kind, mistakes.wrong, mistakes.incomplete) == (MistakeKind.INCOMPLETE, 6, 6)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("I don\u2019t know.", MistakeKind.BLANK),
        ("idk", MistakeKind.BLANK),
        ("?", MistakeKind.BLANK),
        ("  ... n/a --", MistakeKind.BLANK),
        ("Sorry, I don't understand this!", MistakeKind.BLANK),
        ("<", MistakeKind.NONE),
        ("It makes food.", MistakeKind.INCOMPLETE),
        ("The plant does not need sunlight.", MistakeKind.REVERSED),
        ("My brother plays soccer.", MistakeKind.OFF_TOPIC),
        ("I don't know how a plant needs sunlight", MistakeKind.BLANK),
        ("I don't know the answer", MistakeKind.BLANK),
        ("Not sure, but it makes food.", MistakeKind.INCOMPLETE),
        ("Na", MistakeKind.NONE),
    ],
)
def test_wrong_answers_have_a_kind_by_their_words(answer: str, kind: MistakeKind) -> None:
    mistakes = mistakes_of([answer] * 6)
    assert (mistakes.kind, mistakes.judged, mistakes.wrong) == (kind, 6, 6)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("It goes up.", "It goes down."),
        ("The short string has a lower pitch.", "It has a higher pitch."),
        ("It becomes hotter.", "It gets colder."),
        ("North", "South"),
        ("No", "Yes"),
        ("I'm not sure, but they repel.", "They attract."),
        ("24", "42"),
    ],
)
def test_the_opposite_of_a_word_and_digits_backwards_are_reversed(answer: str, reference: str) -> None:
    assert mistakes_of([answer] * 6, reference_answer=reference).kind is MistakeKind.REVERSED


def test_a_wrong_number_is_of_no_kind() -> None:
    mistakes = mistakes_of(["45"] * 6, reference_answer="42")
    assert (mistakes.kind, mistakes.wrong) == (MistakeKind.NONE, 6)


def test_part_of_the_points_means_incomplete_and_none_beside_it_means_reversed() -> None:
    def scored(score: float) -> BaselineResponse:
        question = "Why does a plant need sunlight?"
        return BaselineResponse(
            question=question, student_answer="It eats sunlight.", reference_answer=REFERENCE, score=score
        )

    mostly_parts = compute_policy(baseline_of([scored(25)] * 6 + [scored(0)] * 2)).mistakes
    assert (mostly_parts.kind, mostly_parts.incomplete, mostly_parts.reversed) == (MistakeKind.INCOMPLETE, 6, 2)
    mostly_none = compute_policy(baseline_of([scored(25)] * 2 + [scored(0)] * 6)).mistakes
    assert mostly_none.kind is MistakeKind.REVERSED
    # Where nobody gets a part of the points, no points say nothing about the kind.
    assert compute_policy(baseline_of([scored(0)] * 6)).mistakes.reversed == 0


def test_half_of_the_points_is_a_right_answer_that_is_incomplete() -> None:
    mistakes = policy_of([SHORT] * 8, max_score=2.0, is_correct=None, score=1.0).mistakes
    assert (mistakes.kind, mistakes.wrong, mistakes.incomplete) == (MistakeKind.INCOMPLETE, 0, 8)
    nearly_whole = policy_of([SHORT] * 8, is_correct=None, score=95.0).mistakes
    assert (nearly_whole.kind, nearly_whole.incomplete) == (MistakeKind.NONE, 0)


def test_half_of_the_points_for_right_answers_tells_that_no_points_mean_reversed() -> None:
    def scored(score: float) -> BaselineResponse:
        return BaselineResponse(
            question="Why?", student_answer="It eats sunlight.", reference_answer=REFERENCE, score=score
        )

    mistakes = compute_policy(baseline_of([scored(50)] * 2 + [scored(0)] * 6)).mistakes
    assert (mistakes.kind, mistakes.wrong, mistakes.reversed) == (MistakeKind.REVERSED, 6, 6)


def test_points_out_of_an_untold_best_score_are_no_part_of_a_right_answer() -> None:
    mistakes = policy_of([SHORT] * 8, is_correct=True, score=1.0).mistakes
    assert (mistakes.kind, mistakes.incomplete) == (MistakeKind.NONE, 0)


def test_a_partial_score_says_nothing_about_answers_without_a_score() -> None:
    def response(score: float | None) -> BaselineResponse:
        return BaselineResponse(
            question="Why does a plant need sunlight?",
            student_answer=SHORT,
            reference_answer=REFERENCE,
            is_correct=False,
            score=score,
        )

    mistakes = compute_policy(baseline_of([response(25.0), *[response(None)] * 8])).mistakes
    assert (mistakes.kind, mistakes.incomplete, mistakes.reversed) == (MistakeKind.INCOMPLETE, 9, 0)


def test_a_misspelt_key_word_is_noticed_in_right_and_in_wrong_answers() -> None:
    right = mistakes_of(["The plant needs sunlihgt."] * 6, is_correct=True)
    assert (right.kind, right.wrong, right.misspelt) == (MistakeKind.MISSPELT, 0, 6)
    wrong = mistakes_of(["fotosynthesis", "photosinthesis"] * 3, reference_answer="photosynthesis")
    assert (wrong.kind, wrong.misspelt) == (MistakeKind.MISSPELT, 3)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Metal does not conduct electricty.", "Metal conducts electricity."),
        ("It has a lower temprature.", "It has a higher temperature."),
    ],
)
def test_a_misspelt_word_does_not_hide_a_contradiction(answer: str, reference: str) -> None:
    mistakes = mistakes_of([answer] * 6, reference_answer=reference)
    assert (mistakes.kind, mistakes.misspelt) == (MistakeKind.REVERSED, 0)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("Its behaviour changes.", "Its behavior changes."), ("They organize food.", "They organise food.")],
)
def test_british_and_american_spelling_are_no_misspelling(answer: str, reference: str) -> None:
    assert mistakes_of([answer] * 6, reference_answer=reference, is_correct=True).misspelt == 0


def test_another_form_of_a_word_is_no_misspelling() -> None:
    assert mistakes_of(["It bubbled."] * 6, reference_answer="It makes bubbles.", is_correct=True).misspelt == 0


def test_few_mistakes_are_no_usual_kind() -> None:
    right = [BaselineResponse(question="Why?", student_answer=USUAL, is_correct=True)] * 22
    wrong = [BaselineResponse(question="Why?", student_answer="idk", is_correct=False)] * 2
    mistakes = compute_policy(baseline_of([*right, *wrong])).mistakes
    assert (mistakes.kind, mistakes.blank) == (MistakeKind.NONE, 2)


@pytest.mark.parametrize(
    ("requests", "level"), [(0, GuidanceLevel.LITTLE), (1, GuidanceLevel.USUAL), (3, GuidanceLevel.MUCH)]
)
def test_guidance_counts_the_answers_that_ask(requests: int, level: GuidanceLevel) -> None:
    asking = ["What do you mean?", "I do not know.", "Can you help me with this one"][:requests]
    guidance = policy_of([*asking, *["The results help me find out."] * (12 - requests)]).guidance
    assert (guidance.level, guidance.answers, guidance.requests) == (level, 12, requests)


@pytest.mark.parametrize(
    ("requests", "answers", "level"),
    [
        (0, 6, GuidanceLevel.UNKNOWN),
        (0, 11, GuidanceLevel.UNKNOWN),
        (1, 6, GuidanceLevel.USUAL),
        (2, 14, GuidanceLevel.MUCH),
        (2, 15, GuidanceLevel.USUAL),
    ],
)
def test_few_answers_without_a_request_say_nothing_of_guidance(
    requests: int, answers: int, level: GuidanceLevel
) -> None:
    assert policy_of([*["idk"] * requests, *[USUAL] * (answers - requests)]).guidance.level is level


@pytest.mark.parametrize("answer", ["Na", "-", "?", "What time is it?", "I don't know is what he said."])
def test_a_right_answer_asks_for_nothing(answer: str) -> None:
    assert policy_of([answer] * 12, is_correct=True).guidance.requests == 0


@pytest.mark.parametrize(
    ("answer", "requests"),
    [
        ("Because the boy was not sure which way to go.", 0),
        ("Scientists do not know why it is warm.", 0),
        ("I don't get wet because of the coat.", 0),
        ("They have no idea.", 0),
        ("I don't get it", 12),
        ("Don't know why", 12),
        ("It is warm but I'm not sure why", 12),
    ],
)
def test_only_the_student_asks(answer: str, requests: int) -> None:
    assert policy_of([answer] * 12).guidance.requests == requests


def test_interests_are_those_of_the_baseline() -> None:
    baseline = replace(baseline_of([]), interests=("cats", "trains"))
    assert compute_policy(baseline).interests == ("cats", "trains")


def test_an_earlier_policy_stands_where_new_answers_are_too_few() -> None:
    many = replace(baseline_of(responses(USUAL, 24)), interests=("cats",))
    earlier = compute_policy(many)
    few = baseline_of(responses(SHORT, 4))
    assert compute_policy(few, earlier=earlier) == earlier
    assert compute_policy(few, earlier=compute_policy(few)) == compute_policy(few)
    enough = replace(baseline_of(responses(SHORT, 12)), interests=("trains",))
    assert compute_policy(enough, earlier=earlier) == compute_policy(enough)


def test_each_part_of_an_earlier_policy_stands_by_itself() -> None:
    earlier = compute_policy(baseline_of(responses(USUAL, 24)))
    policy = compute_policy(replace(baseline_of(responses(SHORT, 8)), interests=("trains",)), earlier=earlier)
    assert (policy.writing.level, policy.mistakes.judged, policy.interests) == (WritingLevel.BELOW, 8, ("trains",))
    assert policy.guidance == earlier.guidance, "eight answers without a request say nothing"


def responses(answer: str, count: int) -> list[BaselineResponse]:
    return [
        BaselineResponse(
            question="Why?", student_answer=answer, reference_answer=REFERENCE, skill="plants", is_correct=False
        )
    ] * count


def test_the_evidence_holds_no_word_of_the_student() -> None:
    policy = policy_of(["zwibbelfish sunlight"] * 9, skill="plants")
    assert "zwibbelfish" not in repr(policy)
