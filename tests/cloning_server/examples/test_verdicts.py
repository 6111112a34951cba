"""Whether an answer of a baseline was right, and what a record says."""

from dataclasses import replace

import pytest

from cloning_server.clone import BaselineResponse
from cloning_server.examples.verdicts import Band, ResponseVerdict, band_of, verdict_of
from tests.cloning_server.examples.drafts import answer


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
