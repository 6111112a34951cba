"""Requests to the engine that its tests share."""

from brain_server.engine.contract import Generation, Sampling
from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.profile import StudentProfile


def prompt_of(text: str = "Tell me everything about plants, in a very long text.") -> Prompt:
    """A conversation of one turn."""
    return Prompt(
        profile=StudentProfile(grade="5"), turns=(Turn(role=Role.STUDENT, text=text),), instruction="You are a tutor."
    )


def greedy(
    student_id: str | None = None, *, max_tokens: int = 12, version: int | None = None, deadline: float | None = None
) -> Generation:
    """A request whose reply depends on nothing but the model and the adapter."""
    return Generation(
        prompt=prompt_of(),
        student_id=student_id,
        version=version,
        deadline=deadline,
        sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
    )
