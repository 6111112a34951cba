"""What an answer is judged by."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """What an answer is judged by. An empty text is unknown; at least one of `TEXTS` is known.

    Attributes:
        grade: One of `mesh.tutoring.profile.GRADES`, or None.
        subject: The subject, in a few words.
        learning_objective: What the student should have understood.
        question: The question that the student answers.
        reference_answer: A correct answer.
        rubric: How to grade.
    """

    TEXTS: ClassVar = ("learning_objective", "question", "reference_answer", "rubric")

    grade: str | None = None
    subject: str = ""
    learning_objective: str = ""
    question: str = ""
    reference_answer: str = ""
    rubric: str = ""

    @property
    def described(self) -> str:
        """The criteria as lines for a prompt."""
        lines = {
            "Grade": self.grade or "",
            "Subject": self.subject,
            "Learning objective": self.learning_objective,
            "Rubric": self.rubric,
            "Question": self.question,
            "Reference answer": self.reference_answer,
        }
        return "\n".join(f"{name}: {one_line(text)}" for name, text in lines.items() if text)


def one_line(text: str) -> str:
    """Returns the text without line breaks, so that no answer can add lines to the prompt."""
    return " ".join(text.split())
