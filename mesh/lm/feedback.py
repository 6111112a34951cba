"""How the Main Brain is asked for feedback in the form of `Assess`, in training and in serving."""

import json
from dataclasses import asdict, dataclass

from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.assessment import AnswerAssessment
from mesh.tutoring.criteria import Criteria, one_line
from mesh.tutoring.profile import StudentProfile

_REQUEST = "Write feedback to the student as JSON: feedback, strengths, areas_for_improvement, next_steps."


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """Feedback to a student.

    Attributes:
        feedback: A comment on the answer.
        strengths: What the answer got right.
        areas_for_improvement: What the answer missed.
        next_steps: What the student should do next.
    """

    feedback: str
    strengths: tuple[str, ...]
    areas_for_improvement: tuple[str, ...]
    next_steps: str

    def to_json(self) -> str:
        """Returns the JSON text that a model writes, with the keys in their order."""
        return json.dumps(asdict(self), ensure_ascii=False)


def feedback_prompt(
    answer: str, criteria: Criteria, *, assessment: AnswerAssessment, profile: StudentProfile
) -> Prompt:
    """Returns the prompt for feedback on an answer whose verdict is known."""
    text = f"{criteria.described}\nStudent's answer: {one_line(answer)}\n{_REQUEST}"
    return Prompt(profile=profile, turns=(Turn(role=Role.STUDENT, text=text),), assessment=assessment)
