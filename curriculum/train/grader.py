"""What the grader learns, how it is calibrated, and how it is measured."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cloning_server.compute.lora_factors import LoraFactors
from cloning_server.learning.packing import pack
from cloning_server.learning.passes import Passes
from curriculum.library import draw_of
from curriculum.metrics import agreement
from curriculum.train.grading_sets import GradedAnswer
from curriculum.train.training import RoleExample, grouped
from mesh.lm.chat import Example, encode_prompt
from mesh.lm.grading import CORRECT, LABELS, grader_prompt
from mesh.main_brain.role_manifest import Calibration
from mesh.tutoring.criteria import Criteria
from mesh.tutoring.overlap import OVERLAP_FEATURES, overlap_of

# Of a hundred questions so many are held out whole, and of the other questions so many answers.
_HELD_OUT_QUESTIONS = 4
_HELD_OUT_ANSWERS = 6
# Of a hundred examples so many are told without the reference, or without the question.
_WITHOUT_REFERENCE = 8
# A few hundred answers choose the calibration: a lower one follows their words more than the grader.
_SLOPE_PENALTY = 50
_WITHOUT_QUESTION = 8


class IndistinctLabels(Exception):
    """The base model's tokenizer can't tell the labels apart by their first tokens."""


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
        RoleExample(
            example=_example(answer, tokens[LABELS.index(answer.label)], tokenizer), label=LABELS.index(answer.label)
        )
        for answer in answers
    ]


def label_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the first token of each label.

    Raises:
        IndistinctLabels: Two labels begin with the same token.
    """
    tokens = [int(tokenizer(label, add_special_tokens=False)["input_ids"][0]) for label in LABELS]
    if len(set(tokens)) < len(tokens):
        raise IndistinctLabels(
            f"the base model's tokenizer begins two of the labels {', '.join(LABELS)} with one token"
        )
    return tokens


def weigh(
    passes: Passes, factors: LoraFactors | None, answers: Sequence[JudgedAnswer], tokenizer: PreTrainedTokenizerBase
) -> list[list[float]]:
    """Returns the probabilities of the labels for each answer, as the engine's `weigh` gives them."""
    tokens = label_tokens(tokenizer)
    examples = grader_examples(answers, tokenizer)
    # Equal examples have equal weights.
    weights: dict[RoleExample, list[float]] = {}
    for members in grouped(examples, passes.device):
        packed = pack([member.example for member in members], device=passes.device)
        blocks = [logits_BV[:, tokens].softmax(-1) for logits_BV, _ in passes.logits(packed, factors)]
        rows = torch.cat(blocks).tolist()
        weights.update(zip(members, rows, strict=True))
    return [weights[example] for example in examples]


def calibrate(answers: Sequence[JudgedAnswer], weights: Sequence[Sequence[float]]) -> Calibration:
    """Fits the calibration by maximum likelihood, with a penalty on its parameters.

    Right answers and the others weigh the same in all: in a school most answers are right, in the sets most are wrong.
    """
    logs_NL = torch.tensor(weights, dtype=torch.float64).clamp_min(1e-6).log()
    features_NF = torch.tensor([overlap_of(answer.answer, answer.criteria) for answer in answers], dtype=torch.float64)
    labels_N = torch.tensor([LABELS.index(answer.label) for answer in answers])
    weights_N = _even_weights(labels_N == LABELS.index(CORRECT))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    biases_L = torch.zeros(len(LABELS), dtype=torch.float64, requires_grad=True)
    slopes_LF = torch.zeros(len(LABELS), len(OVERLAP_FEATURES), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, biases_L, slopes_LF], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores_NL = scale * logs_NL + biases_L + features_NF @ slopes_LF.T
        penalty = _SLOPE_PENALTY * slopes_LF.square().sum() + biases_L.square().sum() + (scale - 1).square()
        nats_N = torch.nn.functional.cross_entropy(scores_NL, labels_N, reduction="none")
        value = (weights_N * nats_N).mean() + penalty / len(answers)
        value.backward()
        return value

    optimizer.step(loss)
    return Calibration(
        scale=round(float(scale.detach()), 6),
        biases=tuple(round(value, 6) for value in biases_L.tolist()),
        slopes=tuple(tuple(round(value, 6) for value in row) for row in slopes_LF.tolist()),
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


def _even_weights(is_right_N: Tensor) -> Tensor:
    """Weights with a mean of 1 that give right answers and the others half of the sum each, if there are both."""
    share = is_right_N.double().mean()
    if share in {0, 1}:
        return torch.ones(len(is_right_N), dtype=torch.float64)
    return torch.where(is_right_N, 0.5 / share, 0.5 / (1 - share))


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


def _example(answer: JudgedAnswer, label_token: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    prompt = encode_prompt(tokenizer, grader_prompt(answer.answer, answer.criteria))
    return Example(tokens=(*prompt, label_token), reply_start=len(prompt))
