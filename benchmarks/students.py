"""Students as the benchmarks read them: the body of a StartClone, and answers of the same student to other questions.

`NAME.json` is the request in JSON; `NAME.heldout.json` beside it has `responses` of the same shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf import json_format

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.edge.order_wire import order_from


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkStudent:
    """One student.

    Attributes:
        student_id: Of the request.
        baseline: What an adapter is made of.
        heldout: Answers that no adapter learns from.
    """

    student_id: str
    baseline: Baseline
    heldout: tuple[BaselineResponse, ...]

    def answers_to(self, questions: Sequence[str]) -> tuple[BaselineResponse, ...]:
        """The baseline's answers to some questions, in the order of these."""
        answers = {response.question: response for response in self.baseline.responses}
        return tuple(answers[question] for question in questions)


def common_questions(student: BenchmarkStudent, other: BenchmarkStudent) -> list[str]:
    """The questions that both baselines answer, in an order of their own, the same for both."""
    questions = [{response.question for response in student.baseline.responses} for student in (student, other)]
    return sorted(questions[0] & questions[1], key=lambda question: sha256(question.encode()).digest())


def read_students(folder: Path) -> list[BenchmarkStudent]:
    """All students of a folder who have held-out answers, by file name."""
    return [_read_student(path) for path in sorted(folder.glob("*.json")) if _heldout_of(path).exists()]


def _read_student(path: Path) -> BenchmarkStudent:
    request = json_format.Parse(path.read_text(), pb.StartCloneRequest())
    # As a request of its own, so that the same code parses both.
    other = pb.StartCloneRequest(student_id=request.student_id, student_profile=request.student_profile)
    json_format.Parse(_heldout_of(path).read_text(), other.baseline_data, ignore_unknown_fields=True)
    order = order_from(request)
    return BenchmarkStudent(
        student_id=order.student_id, baseline=order.baseline, heldout=order_from(other).baseline.responses
    )


def _heldout_of(path: Path) -> Path:
    return path.with_suffix(".heldout.json")
