"""Graded answers: those of public sets, read from a folder, and those that lessons and questions give.

The sets are SciEntsBank and Beetle (Dzikovska et al., "SemEval-2013 Task 7", 2013) and SAF (Filighera et al., "Your
Answer is Incorrect... Would you like to know why?", 2022). None is copied into the project.
"""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from curriculum.lesson import Kind, Lesson
from mesh.lm.grading import CORRECT, INCORRECT, PARTIALLY_CORRECT
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.criteria import Criteria, one_line

TRAINING_FILES = ("sciEntsBank.train.jsonl", "beetle.train.jsonl", "saf.english.training.jsonl")
_LABELS = {
    "correct": CORRECT,
    "partially correct": PARTIALLY_CORRECT,
    "incorrect": INCORRECT,
    "contradictory": INCORRECT,
}
_OF_VERDICT = {
    AnswerVerdict.CORRECT: CORRECT,
    AnswerVerdict.PARTIALLY_CORRECT: PARTIALLY_CORRECT,
    AnswerVerdict.INCORRECT: INCORRECT,
    AnswerVerdict.OFF_TOPIC: INCORRECT,
    AnswerVerdict.BLANK: INCORRECT,
}
_MARK = "\n\nMy answer: "


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


def read_graded(path: Path) -> list[GradedAnswer]:
    """Reads a set of graded answers, JSON lines.

    Raises:
        InvalidGradedAnswer: A line lacks a field or has a label that is not known; names file, line and field.
    """
    with path.open(encoding="utf-8") as lines:
        return [_graded(line, where=f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def graded_lessons(lessons: Sequence[Lesson]) -> Iterator[GradedAnswer]:
    """Yields the answers that lessons give with a verdict and a right answer."""
    for lesson in lessons:
        question, mark, answer = lesson.turns[-1].partition(_MARK)
        told = lesson.assessment
        if lesson.kind is Kind.FEEDBACK and mark and told and told.reference_answer:
            yield GradedAnswer(
                source="lessons",
                module=f"{lesson.subject} {lesson.band}",
                question=question,
                references=(told.reference_answer,),
                answer=answer,
                label=_OF_VERDICT[told.verdict],
                subject=lesson.subject.title(),
                grade=lesson.profile.grade,
            )


def made_answers(answers: Sequence[GradedAnswer], *, per_question: int, draws: random.Random) -> list[GradedAnswer]:
    """Makes graded answers whose label is certain.

    A right answer of the same question is right. A right answer to another question of the same module is wrong, and so
    are an empty phrase and the question itself.
    """
    by_module: dict[tuple[str, str], dict[str, GradedAnswer]] = defaultdict(dict)
    for answer in answers:
        if answer.references:
            by_module[answer.source, answer.module].setdefault(answer.question, answer)
    made = []
    for questions in by_module.values():
        for asked in questions.values():
            others = [other for other in questions.values() if not set(other.references) & set(asked.references)]
            texts = [(draws.choice(asked.references), CORRECT)]
            texts += [(draws.choice(other.references), INCORRECT) for other in _some(others, per_question, draws)]
            texts.append((draws.choice((*_EMPTY, asked.question)), INCORRECT))
            made += [_with_answer(asked, text, label) for text, label in texts]
    return made


_EMPTY = ("I don't know", "idk", "no", "yes", "because it is", "?", "I forgot", "N/A", "it just does", "you told us")


def _some(others: Sequence[GradedAnswer], count: int, draws: random.Random) -> list[GradedAnswer]:
    return draws.sample(others, min(count, len(others)))


def _with_answer(asked: GradedAnswer, text: str, label: str) -> GradedAnswer:
    return GradedAnswer(
        source=f"made of {asked.source}",
        module=asked.module,
        question=asked.question,
        references=asked.references,
        answer=text,
        label=label,
        subject=asked.subject,
        grade=asked.grade,
    )


def _graded(line: str, *, where: str) -> GradedAnswer:
    try:
        row = json.loads(line)
    except ValueError:
        raise InvalidGradedAnswer(f"{where}: is not JSON") from None
    missing = [field for field in ("qid", "question", "answer") if not isinstance(row.get(field), str)]
    if missing:
        raise InvalidGradedAnswer(f"{where}: {missing[0]}: is missing or not a text")
    word = str(row.get("label2") or row.get("label", "")).lower()
    if word not in _LABELS:
        raise InvalidGradedAnswer(f"{where}: label: must be one of {', '.join(_LABELS)}")
    return GradedAnswer(
        source=where.rpartition("/")[2].partition(".")[0],
        module=str(row.get("module") or row["qid"]),
        question=one_line(row["question"]),
        references=_references(row.get("reference_answers"), where=where),
        answer=one_line(row["answer"]),
        label=_LABELS[word],
        subject="Science" if "label2" in row else "",
    )


def _references(references: object, *, where: str) -> tuple[str, ...]:
    if not isinstance(references, list) or not all(isinstance(reference, str) for reference in references):
        raise InvalidGradedAnswer(f"{where}: reference_answers: is not a list of texts")
    return tuple(one_line(reference) for reference in references)
