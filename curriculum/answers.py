"""Graded answers and explained questions: read from the JSON lines of public sets.

The sets with answers are SciEntsBank and Beetle (Dzikovska et al., "SemEval-2013 Task 7", 2013) and SAF (Filighera et
al., "Your Answer is Incorrect... Would you like to know why?", 2022). None is copied into the project.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.lm.grading import CORRECT, INCORRECT, PARTIALLY_CORRECT
from mesh.tutoring.criteria import Criteria, one_line
from mesh.tutoring.overlap import overlap_of

_LABELS = {
    "correct": CORRECT,
    "partially correct": PARTIALLY_CORRECT,
    "incorrect": INCORRECT,
    "contradictory": INCORRECT,
}


class InvalidGradedAnswer(ValueError):
    """A line of a set can't be used; the message names file, line and field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradedAnswer:
    """An answer with a person's label.

    Attributes:
        source: The set that it comes from.
        module: Questions of one topic share it.
        question: The question.
        references: Right answers; empty if none is known.
        answer: The answer.
        label: One of `mesh.lm.grading.LABELS`.
        subject: The subject; may be empty.
        grade: The grade, or None.
    """

    source: str
    module: str
    question: str
    references: tuple[str, ...]
    answer: str
    label: str
    subject: str = ""
    grade: str | None = None

    def criteria(self, reference: str = "") -> Criteria:
        """Returns what the answer is judged by, with one of the references."""
        return Criteria(
            grade=self.grade,
            subject=self.subject,
            question=self.question,
            reference_answer=reference or (self.references[0] if self.references else ""),
        )

    @property
    def closest_reference(self) -> str:
        """The right answer that shares most words with the answer; empty if none is known."""
        return max(self.references, key=self._shared_words, default="")

    def _shared_words(self, reference: str) -> float:
        return sum(overlap_of(self.answer, self.criteria(reference))[:2])


def read_graded(path: Path) -> list[GradedAnswer]:
    """Reads a set of graded answers, JSON lines.

    Raises:
        InvalidGradedAnswer: The file can't be read, a line lacks a field, or its label is not known; names file, line
            and field.
    """
    return [_graded(row, where=where) for where, row in read_rows(path, texts=("qid", "question", "answer"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedQuestion:
    """A science question of EntailmentBank (Dalvi et al., 2021).

    Attributes:
        question: The question.
        answer: The right answer.
        hypothesis: Question and answer as one statement.
        facts: Statements that it follows from.
    """

    question: str
    answer: str
    hypothesis: str
    facts: tuple[str, ...]


def read_explained(path: Path) -> Iterator[ExplainedQuestion]:
    """Yields the questions of EntailmentBank, JSON lines.

    Raises:
        InvalidGradedAnswer: The file can't be read, or a line lacks a field; names file, line and field.
    """
    for where, row in read_rows(path, texts=("question", "answer", "hypothesis")):
        facts = row.get("facts")
        if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
            raise InvalidGradedAnswer(f"{where}: facts: is not a list of texts")
        yield ExplainedQuestion(
            question=str(row["question"]),
            answer=str(row["answer"]),
            hypothesis=str(row["hypothesis"]),
            facts=tuple(facts),
        )


def read_rows(path: Path, *, texts: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yields the objects of a file of JSON lines, each after the file and line that it comes from.

    Args:
        path: The file.
        texts: Fields that each object has, as text.

    Raises:
        InvalidGradedAnswer: The file can't be read, or a line is no such object; names file, line and field.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InvalidGradedAnswer(f"{path}: can't be read ({error.strerror})") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _object(line, where=where, texts=texts)


def _object(line: bytes, *, where: str, texts: tuple[str, ...]) -> Mapping[str, object]:
    try:
        row = json.loads(line)
    except ValueError:
        raise InvalidGradedAnswer(f"{where}: is not JSON") from None
    if not isinstance(row, dict):
        raise InvalidGradedAnswer(f"{where}: is not a JSON object")
    missing = [field for field in texts if not isinstance(row.get(field), str)]
    if missing:
        raise InvalidGradedAnswer(f"{where}: {missing[0]}: is missing or not a text")
    return row


def _graded(row: Mapping[str, object], *, where: str) -> GradedAnswer:
    word = str(row.get("label2") or row.get("label", "")).lower()
    if word not in _LABELS:
        raise InvalidGradedAnswer(f"{where}: label: must be one of {', '.join(_LABELS)}")
    return GradedAnswer(
        source=where.rpartition("/")[2].partition(".")[0],
        module=str(row.get("module") or row["qid"]),
        question=one_line(str(row["question"])),
        references=_references(row.get("reference_answers"), where=where),
        answer=one_line(str(row["answer"])),
        label=_LABELS[word],
        subject="Science" if "label2" in row else "",
    )


def _references(references: object, *, where: str) -> tuple[str, ...]:
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        raise InvalidGradedAnswer(f"{where}: reference_answers: is not a list of texts")
    return tuple(one_line(reference) for reference in references)
