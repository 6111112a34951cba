"""How a grader is asked for a verdict, in training and in serving."""

from collections.abc import Mapping

from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.criteria import Criteria, one_line
from mesh.tutoring.profile import StudentProfile

# Labels that a reply may begin with. The first token of each differs from that of the others.
CORRECT, PARTIALLY_CORRECT, INCORRECT = "Correct", "Partially correct", "Incorrect"
LABELS = (CORRECT, PARTIALLY_CORRECT, INCORRECT)

_INSTRUCTION = "You grade the answers of students."


def grader_prompt(answer: str, criteria: Criteria) -> Prompt:
    """Returns the prompt that a trained grader continues with one of `LABELS`: short, as a verdict is one prefill."""
    text = f"{criteria.described}\nStudent's answer: {one_line(answer)}"
    return Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text=text),), instruction=_INSTRUCTION)


def ordered(weights: Mapping[str, float]) -> list[float]:
    """Returns the weights of `LABELS`, in their order."""
    return [weights[label] for label in LABELS]
