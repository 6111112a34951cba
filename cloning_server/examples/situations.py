"""The situations that a clone learns from one response.

A question alone, an answer with its verdict, an answer of which nothing is known, a student who is stuck. A reply
judges only what its prompt tells. Knows nothing of models.
"""

from enum import StrEnum
from hashlib import sha256

from cloning_server.clone import BaselineResponse
from cloning_server.examples.blank_answers import is_blank
from mesh.tutoring.assessment import AnswerVerdict


class Situation(StrEnum):
    """What the student needs."""

    EXPLAIN = "explain"
    FEEDBACK = "feedback"
    CHECK = "check"
    HINT = "hint"


# One item of so many also gives a student who is stuck.
_HINT_SHARE = 4
_STUCK = (
    "I don't know how to start.",
    "I'm stuck.",
    "Can you give me a hint?",
    "I don't get this one.",
    "How do I begin?",
)


def situations_of(
    response: BaselineResponse, *, verdict: AnswerVerdict | None, has_reference: bool, is_open: bool = False
) -> tuple[Situation, ...]:
    """Returns the situations of a response, at least one.

    Args:
        response: The response.
        verdict: What is known of its answer; None for nothing.
        has_reference: Whether a right answer is known.
        is_open: Whether there is a teacher's feedback that states no verdict: a reply to an answer of which the prompt
            tells nothing.
    """
    draw = draw_of(response.item)
    chosen = {
        Situation.EXPLAIN: has_reference,
        Situation.FEEDBACK: verdict is not None,
        # Where nothing was answered, nothing can be checked.
        Situation.CHECK: is_open or not is_blank(response.student_answer),
    }
    chosen[Situation.HINT] = draw % _HINT_SHARE == 1 or not any(chosen.values())
    return tuple(situation for situation, is_chosen in chosen.items() if is_chosen)


def text_of(response: BaselineResponse, situation: Situation) -> str:
    """Returns what the student writes in a situation."""
    question, answer = response.question.strip(), response.student_answer.strip()
    if situation is Situation.HINT:
        return f"{question}\n\n{_STUCK[draw_of(response.item) % len(_STUCK)]}"
    if situation is Situation.EXPLAIN or not answer:
        return question
    return f"{question}\n\nMy answer: {answer}"


def draw_of(text: str) -> int:
    """Returns a number that the text alone decides, as good as drawn."""
    return int.from_bytes(sha256(text.encode()).digest()[:4], "big")
