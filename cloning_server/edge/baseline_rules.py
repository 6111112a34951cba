"""The rules of a baseline that no field can state: scores fit their scale, questions differ, interests are decent.

Each stands in the contract beside its field.
"""

from collections.abc import Iterator

from cloning_server.clone import MIN_QUESTIONS, Baseline
from cloning_server.edge.interest_screening import has_bad_language
from mesh.errors import InvalidField, Violation

# A scale that ends here or below can't be told from shares of 100 that are all low.
_AMBIGUOUS_SCORE = 1


def check_baseline(baseline: Baseline) -> None:
    """Returns if a clone can learn from a baseline.

    Raises:
        InvalidField: Names each fault: a score above the scale, a missing `max_score`, too few different questions in
            `responses`, bad language in `interests`.
    """
    rules = (_high_scores, _unknown_scale, _few_questions, _bad_interests)
    if violations := [violation for rule in rules for violation in rule(baseline)]:
        raise InvalidField(violations)


def _high_scores(baseline: Baseline) -> Iterator[Violation]:
    limit = f"{baseline.best_score:.15g}"
    description = (
        f"must be less than or equal to {limit}, unless baseline_data.max_score tells a higher best score"
        if baseline.max_score is None
        else f"must be less than or equal to {limit}, which is baseline_data.max_score"
    )
    for index, response in enumerate(baseline.responses):
        if response.score is not None and response.score > baseline.best_score:
            yield Violation(f"baseline_data.responses[{index}].score", description)


def _unknown_scale(baseline: Baseline) -> Iterator[Violation]:
    """Scores of 0 and 1 are most likely points; taken for percent, every right answer would count as wrong."""
    scores = [response.score for response in baseline.responses if response.score is not None]
    is_needed = any(response.score is not None and response.is_correct is None for response in baseline.responses)
    if baseline.max_score is None and is_needed and max(scores) <= _AMBIGUOUS_SCORE:
        yield Violation(
            "baseline_data.max_score",
            "must be set, because no score is above 1: set it to the best score that an answer can get, such as 1 for"
            " points or 100 for percent",
        )


def _few_questions(baseline: Baseline) -> Iterator[Violation]:
    questions = len({response.item for response in baseline.responses})
    if questions < MIN_QUESTIONS:
        yield Violation(
            "baseline_data.responses",
            f"must answer at least {MIN_QUESTIONS} different questions, one to train on and one to hold out; these"
            f" answer {questions} (case and spacing make no difference)",
        )


def _bad_interests(baseline: Baseline) -> Iterator[Violation]:
    """A clone names interests in its replies."""
    if any(map(has_bad_language, baseline.interests)):
        yield Violation("student_profile.interests", "must hold no bad language")
