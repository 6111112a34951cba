"""The graded answers that a grader learns from: those of public sets, and those that lessons and questions give."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from curriculum.answers import GradedAnswer, InvalidGradedAnswer, read_explained, read_graded
from curriculum.lesson import Kind, Lesson
from curriculum.prompts import question_and_answer
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


def graded_lessons(lessons: Sequence[Lesson]) -> Iterator[GradedAnswer]:
    """Yields the answers that lessons give with a verdict and a right answer."""
    for lesson in lessons:
        question, answer = question_and_answer(lesson)
        assessment = lesson.assessment
        if lesson.kind in {Kind.FEEDBACK, Kind.ASSESS} and answer and assessment and assessment.reference_answer:
            yield GradedAnswer(
                source="lessons",
                module=f"{lesson.subject} {lesson.band}",
                question=question,
                references=(assessment.reference_answer,),
                answer=answer,
                label=_OF_VERDICT[assessment.verdict],
                subject=lesson.subject.title(),
                grade=lesson.profile.grade,
            )


def explained_answers(path: Path) -> Iterator[GradedAnswer]:
    """Yields graded answers made of EntailmentBank (Dalvi et al., 2021), JSON lines of science questions.

    The statement that a question leads to is right as an answer to it. That of the question with the most words in
    common, among those with another answer, is wrong.

    Raises:
        InvalidGradedAnswer: A line lacks a field; names file, line and field.
    """
    questions = list(read_explained(path))
    words = [set(one_line(explained.question).lower().split()) for explained in questions]
    for index, explained in enumerate(questions):
        others = [place for place, other in enumerate(questions) if other.answer != explained.answer]
        similar = max(
            others,
            key=lambda place: len(words[place] & words[index]) / max(1, len(words[place] | words[index])),
            default=None,
        )
        texts = [(explained.hypothesis, CORRECT)]
        if similar is not None:
            texts.append((questions[similar].hypothesis, INCORRECT))
        for text, label in texts:
            yield GradedAnswer(
                source="entailmentBank",
                module="science",
                question=one_line(explained.question),
                references=(one_line(explained.answer),),
                answer=one_line(text),
                label=label,
                subject="Science",
            )


def made_answers(answers: Sequence[GradedAnswer], *, draws: random.Random) -> list[GradedAnswer]:
    """Makes graded answers whose label is certain.

    A right answer of the same question is right. A right answer to another question of the same module is wrong, and so
    are an empty phrase and the question itself. A question with a few pupils' answers, as in a lesson, gets one of
    these: else the easy answers of a thousand lessons would outnumber the pupils' own.
    """
    counts = Counter(answer.question for answer in answers)
    by_module: dict[tuple[str, str], dict[str, GradedAnswer]] = defaultdict(dict)
    for answer in answers:
        if answer.references:
            by_module[answer.source, answer.module].setdefault(answer.question, answer)
    certain_answers: list[GradedAnswer] = []
    for questions in by_module.values():
        for question_answer in questions.values():
            others = [
                other for other in questions.values() if not set(other.references) & set(question_answer.references)
            ]
            texts = [(draws.choice(question_answer.references), CORRECT)]
            texts += [
                (draws.choice(other.references), INCORRECT) for other in _some(others, _WRONG_PER_QUESTION, draws)
            ]
            texts.append((draws.choice(_empty_answers_to(question_answer)), INCORRECT))
            if counts[question_answer.question] < len(texts):
                texts = [draws.choice(texts)]
            certain_answers += [_with_answer(question_answer, text, label) for text, label in texts]
    return certain_answers


# Wrong answers made per question: right answers to other questions.
_WRONG_PER_QUESTION = 2
_EMPTY = ("I don't know", "idk", "no", "yes", "because it is", "?", "I forgot", "N/A", "it just does", "you told us")


def _empty_answers_to(answer: GradedAnswer) -> list[str]:
    """Answers that say nothing, and the question itself; none that a right answer begins with, such as "yes"."""
    references = [reference.lower() for reference in answer.references]
    phrases = [*_EMPTY, answer.question]
    return [text for text in phrases if not any(reference.startswith(text.lower()) for reference in references)]


def _some(others: Sequence[GradedAnswer], count: int, draws: random.Random) -> list[GradedAnswer]:
    return draws.sample(others, min(count, len(others)))


def _with_answer(question_answer: GradedAnswer, text: str, label: str) -> GradedAnswer:
    return GradedAnswer(
        source=f"made of {question_answer.source}",
        module=question_answer.module,
        question=question_answer.question,
        references=question_answer.references,
        answer=text,
        label=label,
        subject=question_answer.subject,
        grade=question_answer.grade,
    )
