"""Whether an answer of a baseline was right, and what the record in a skill says. Knows nothing of models."""

from enum import StrEnum

from cloning_server.clone import DEFAULT_MAX_SCORE, BaselineResponse
from cloning_server.examples.blank_answers import is_blank
from mesh.tutoring.arithmetic import same_number
from mesh.tutoring.assessment import AnswerVerdict

# The least score of a right answer, as a share of the best score, if the response does not tell `is_correct`.
PASS_SHARE = 0.5


class ResponseVerdict(StrEnum):
    """Whether the student's answer was right."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNKNOWN = "unknown"


class Band(StrEnum):
    """The student's record in a skill; the lower it is, the more scaffolding a reply gives."""

    STRUGGLING = "struggling"
    DEVELOPING = "developing"
    SECURE = "secure"


def verdict_of(response: BaselineResponse, *, best_score: float = DEFAULT_MAX_SCORE) -> ResponseVerdict:
    """The verdict on a response: by `is_correct`, otherwise by the score, otherwise by numbers.

    Without `is_correct` and a score, an answer is judged only if it and the reference answer are numbers.

    Args:
        response: The response.
        best_score: The best score that it can have.
    """
    is_right = response.is_correct
    if is_right is None and response.score is not None:
        # Not the share of the best score: it rounds to 0 where that is tiny, and no points are never a right answer.
        is_right = response.score > 0 and response.score / PASS_SHARE >= best_score
    elif is_right is None:
        is_right = same_number(response.reference_answer, response.student_answer)
    if is_right is None:
        return ResponseVerdict.UNKNOWN
    return ResponseVerdict.CORRECT if is_right else ResponseVerdict.INCORRECT


def answer_verdict_of(response: BaselineResponse, *, best_score: float = DEFAULT_MAX_SCORE) -> AnswerVerdict | None:
    """What a prompt may tell of a response's answer; None if nothing is known of it."""
    verdict = verdict_of(response, best_score=best_score)
    if verdict is ResponseVerdict.UNKNOWN:
        return None
    if verdict is ResponseVerdict.CORRECT:
        return AnswerVerdict.CORRECT
    # As nothing can be judged in it, whatever its score: "That is not right" is no reply to "I don't know".
    if is_blank(response.student_answer):
        return AnswerVerdict.BLANK
    return AnswerVerdict.PARTIALLY_CORRECT if response.score else AnswerVerdict.INCORRECT


def band_of(*, correct: int, judged: int) -> Band:
    """The band of a record, by Laplace's rule of succession: with few answers it stays in the middle."""
    chance = (correct + 1) / (judged + 2)
    if chance < 1 / 3:
        return Band.STRUGGLING
    return Band.SECURE if chance > 2 / 3 else Band.DEVELOPING
