"""The graded answers that a grader learns from: those of public sets, and those that lessons and questions give."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from curriculum.answers import GradedAnswer, InvalidGradedAnswer, read_graded
from curriculum.lesson import Kind, Lesson
from mesh.lm.grading import CORRECT, INCORRECT, PARTIALLY_CORRECT
from mesh.tutoring.assessment import AnswerVerdict
from mesh.tutoring.criteria import one_line

__all__ = [
    "TRAINING_FILES",
    "GradedAnswer",
    "InvalidGradedAnswer",
    "explained_answers",
    "graded_lessons",
    "made_answers",
    "read_graded",
]

TRAINING_FILES = ("sciEntsBank.train.jsonl", "beetle.train.jsonl", "saf.english.training.jsonl")
_OF_VERDICT = {
    AnswerVerdict.CORRECT: CORRECT,
    AnswerVerdict.PARTIALLY_CORRECT: PARTIALLY_CORRECT,
    AnswerVerdict.INCORRECT: INCORRECT,
    AnswerVerdict.OFF_TOPIC: INCORRECT,
    AnswerVerdict.BLANK: INCORRECT,
}
_MARK = "\n\nMy answer: "


def graded_lessons(lessons: Sequence[Lesson]) -> Iterator[GradedAnswer]:
    """Yields the answers that lessons give with a verdict and a right answer."""
    for lesson in lessons:
        question, mark, answer = lesson.turns[-1].partition(_MARK)
        told = lesson.assessment
        if lesson.kind in {Kind.FEEDBACK, Kind.ASSESS} and mark and told and told.reference_answer:
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


def explained_answers(path: Path) -> Iterator[GradedAnswer]:
    """Yields graded answers made of EntailmentBank (Dalvi et al., 2021), JSON lines of science questions.

    The statement that a question leads to is right as an answer to it. That of the question with the most words in
    common, among those with another answer, is wrong.
    """
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    words = [set(one_line(row["question"]).lower().split()) for row in rows]
    for index, row in enumerate(rows):
        others = [place for place in range(len(rows)) if rows[place]["answer"] != row["answer"]]
        similar = max(others, key=lambda place: len(words[place] & words[index]) / len(words[place] | words[index]))
        for text, label in ((row["hypothesis"], CORRECT), (rows[similar]["hypothesis"], INCORRECT)):
            yield GradedAnswer(
                source="entailmentBank",
                module="science",
                question=one_line(row["question"]),
                references=(one_line(row["answer"]),),
                answer=one_line(text),
                label=label,
                subject="Science",
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
