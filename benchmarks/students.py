"""Students in files: a StartClone request, and held-out answers of the same student to other questions.

`NAME.json` is the request in JSON. `NAME.heldout.json` in the same folder has `responses` of the same shape, with the
same best score. It may name the `classmate` who answered the same questions, and the student's `interests`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from aivo.cloning.v1 import cloning_service_pb2 as pb
from google.protobuf import json_format

from cloning_server.clone import Baseline, BaselineResponse
from cloning_server.edge.order_wire import order_from
from mesh.tutoring.profile import parse_interests


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkStudent:
    """One student.

    Attributes:
        student_id: The student's id in the request.
        baseline: The answers from which an adapter is trained.
        heldout: Answers from which no adapter is trained.
        classmate_id: The classmate whom the files name; empty for none.
    """

    student_id: str
    baseline: Baseline
    heldout: tuple[BaselineResponse, ...]
    classmate_id: str = ""

    def answers_to(self, questions: Sequence[str]) -> tuple[BaselineResponse, ...]:
        """Returns the baseline's answers to some questions, in the order of the questions."""
        answers = {response.question: response for response in self.baseline.responses}
        return tuple(answers[question] for question in questions)


def common_questions(student: BenchmarkStudent, other: BenchmarkStudent) -> list[str]:
    """Returns the questions that both baselines answer, in an order that depends on the questions alone."""
    questions = [{response.question for response in student.baseline.responses} for student in (student, other)]
    return sorted(questions[0] & questions[1], key=lambda question: sha256(question.encode()).digest())


def read_students(folder: Path) -> list[BenchmarkStudent]:
    """Returns all students of a folder who have held-out answers, sorted by file name."""
    return [_read_student(path) for path in sorted(folder.glob("*.json")) if _heldout_path(path).exists()]


def _read_student(path: Path) -> BenchmarkStudent:
    request = json_format.Parse(path.read_text(), pb.StartCloneRequest())
    text = _heldout_path(path).read_text()
    about = json.loads(text)
    # The held-out answers become a request too, so that the same code parses both.
    heldout = pb.StartCloneRequest(student_id=request.student_id, student_profile=request.student_profile)
    json_format.Parse(text, heldout.baseline_data, ignore_unknown_fields=True)
    order = order_from(request)
    interests = order.baseline.interests or parse_interests(about.get("interests", ()))
    return BenchmarkStudent(
        student_id=order.student_id,
        baseline=replace(order.baseline, interests=interests),
        heldout=order_from(heldout).baseline.responses,
        classmate_id=about.get("classmate", ""),
    )


def _heldout_path(path: Path) -> Path:
    return path.with_suffix(".heldout.json")
