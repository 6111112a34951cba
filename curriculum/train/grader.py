"""What the grader learns, how it is calibrated, and how it is measured."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.passes import Passes
from curriculum.library import draw_of
from curriculum.metrics import agreement
from curriculum.train.grading_sets import GradedAnswer
from curriculum.train.labels import even_weights, first_tokens, fit_calibration, labelled_example, weigh_examples
from curriculum.train.training import RoleExample
from mesh.lm.grading import CORRECT, LABELS, grader_prompt
from mesh.main_brain.role_manifest import Calibration
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.overlap import overlap_of

# Of a hundred questions so many are held out whole, and of the other questions so many answers.
_HELD_OUT_QUESTIONS = 4
_HELD_OUT_ANSWERS = 6
# Of a hundred examples so many are told without the reference, or without the question.
_WITHOUT_REFERENCE = 8
_WITHOUT_QUESTION = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAnswer:
    """A graded answer as the grader reads it."""

    answer: str
    criteria: Criteria
    label: str


def split_graded(answers: Iterable[GradedAnswer]) -> tuple[list[GradedAnswer], list[GradedAnswer]]:
    """Splits answers into those to learn from and those to calibrate with; whole questions and single answers."""
    learned: list[GradedAnswer] = []
    held_out: list[GradedAnswer] = []
    for answer in answers:
        by_question = draw_of(f"question {answer.question}") % 100 < _HELD_OUT_QUESTIONS
        by_answer = draw_of(f"answer {answer.question} {answer.answer}") % 100 < _HELD_OUT_ANSWERS
        (held_out if by_question or by_answer else learned).append(answer)
    return learned, held_out


def judged(answers: Sequence[GradedAnswer], *, seed: int) -> list[JudgedAnswer]:
    """Returns the answers as training tells them: one of the references, at times no reference or no question."""
    # Repeatable on purpose; it need not be hard to guess.
    draws = random.Random(seed)  # noqa: S311
    return [_presented(answer, draws) for answer in answers]


def closest(answer: GradedAnswer) -> JudgedAnswer:
    """Returns an answer with the reference that shares most of its words, for measuring."""
    return JudgedAnswer(answer=answer.answer, criteria=answer.criteria(answer.closest_reference), label=answer.label)


def grader_examples(answers: Sequence[JudgedAnswer], tokenizer: PreTrainedTokenizerBase) -> list[RoleExample]:
    """Returns one example per answer: the grader's prompt, and the first token of its label."""
    tokens = label_tokens(tokenizer)
    return [
        labelled_example(
            grader_prompt(answer.answer, answer.criteria),
            LABELS.index(answer.label),
            label_tokens=tokens,
            tokenizer=tokenizer,
        )
        for answer in answers
    ]


def label_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the first token of each label.

    Raises:
        IndistinctLabels: Two labels begin with the same token.
    """
    return first_tokens(LABELS, tokenizer)


def weigh(
    passes: Passes, factors: LoraFactors | None, answers: Sequence[JudgedAnswer], tokenizer: PreTrainedTokenizerBase
) -> list[list[float]]:
    """Returns the probabilities of the labels for each answer, as the engine's `weigh` gives them."""
    return weigh_examples(passes, factors, grader_examples(answers, tokenizer), label_tokens(tokenizer))


def calibrate(answers: Sequence[JudgedAnswer], weights: Sequence[Sequence[float]]) -> Calibration:
    """Fits the calibration.

    Right answers and the others weigh the same in all: in a school most answers are right, in the sets most are wrong.
    """
    labels = [LABELS.index(answer.label) for answer in answers]
    return fit_calibration(
        weights,
        labels,
        weights_N=even_weights(torch.tensor(labels) == LABELS.index(CORRECT)),
        features=[overlap_of(answer.answer, answer.criteria) for answer in answers],
    )


def measure(
    answers: Sequence[JudgedAnswer], weights: Sequence[Sequence[float]], calibration: Calibration | None
) -> dict[str, float]:
    """Returns the figures of `curriculum.metrics.agreement`, and the number of answers."""
    probabilities = [
        calibration.apply(row, overlap_of(answer.answer, answer.criteria)) if calibration else list(row)
        for answer, row in zip(answers, weights, strict=True)
    ]
    figures = agreement(probabilities, [answer.label for answer in answers])
    return {**{name: round(value, 4) for name, value in figures.items()}, "answers": len(answers)}


def _presented(answer: GradedAnswer, draws: random.Random) -> JudgedAnswer:
    references = answer.references
    chances = draws.random(), draws.random(), draws.random()
    reference = answer.closest_reference if chances[0] < 0.5 else draws.choice(references) if references else ""
    if len(references) > 1 and chances[0] > 0.9:
        reference = " ".join(reference if reference.endswith(".") else f"{reference}." for reference in references)[
            :600
        ]
    criteria = answer.criteria(reference)
    if chances[1] < _WITHOUT_REFERENCE / 100:
        criteria = Criteria(grade=criteria.grade, subject=criteria.subject, question=criteria.question)
    elif chances[1] < (_WITHOUT_REFERENCE + _WITHOUT_QUESTION) / 100:
        criteria = Criteria(grade=criteria.grade, subject=criteria.subject, reference_answer=criteria.reference_answer)
    if chances[2] < 0.4:
        criteria = Criteria(question=criteria.question, reference_answer=criteria.reference_answer)
    return JudgedAnswer(answer=answer.answer, criteria=criteria, label=answer.label)
