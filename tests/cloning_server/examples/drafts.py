"""The drafts that responses of a baseline give, for tests of what a clone learns."""

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.examples.examples import Draft, draft_examples
from cloning_server.examples.situations import Situation
from cloning_server.examples.teaching_policy import compute_policy
from testing.lessons import baseline_of


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
