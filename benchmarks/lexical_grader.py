"""A baseline of graders: multinomial logistic regression on how the words of an answer overlap with the right answer's.

The features are those of `mesh.tutoring.overlap`; no language model is involved.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from curriculum.answers import GradedAnswer
from mesh.lm.grading import LABELS
from mesh.tutoring.overlap import overlap_of

# Strength of the penalty on the weights, relative to the mean loss.
_PENALTY = 1e-3


class LexicalGrader:
    """Grades by word overlap.

    Args:
        answers: The graded answers that it is fitted on; a label that none of them has is never likely.
    """

    def __init__(self, answers: Sequence[GradedAnswer]) -> None:
        features_NF = _features(answers)
        labels_N = torch.tensor([LABELS.index(answer.label) for answer in answers])
        self._weights_FL = torch.zeros(features_NF.shape[1], len(LABELS), dtype=torch.float64, requires_grad=True)
        absent = torch.tensor([label not in {answer.label for answer in answers} for label in LABELS])
        self._mask_L = torch.zeros(len(LABELS), dtype=torch.float64).masked_fill(absent, float("-inf"))
        optimizer = torch.optim.LBFGS([self._weights_FL], max_iter=200, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            scores_NL = features_NF @ self._weights_FL + self._mask_L
            value = torch.nn.functional.cross_entropy(scores_NL, labels_N)
            value = value + _PENALTY * self._weights_FL.square().sum()
            value.backward()
            return value

        optimizer.step(loss)

    def probabilities(self, answers: Sequence[GradedAnswer]) -> list[list[float]]:
        """Returns the probabilities of `LABELS` for each answer."""
        with torch.no_grad():
            scores_NL = _features(answers) @ self._weights_FL + self._mask_L
        return [list(map(float, row)) for row in scores_NL.softmax(-1).tolist()]


def _features(answers: Sequence[GradedAnswer]) -> Tensor:
    """The overlap with the closest reference, and a constant, of each answer: [answers, features]."""
    rows = [[*overlap_of(answer.answer, answer.criteria(answer.closest_reference)), 1.0] for answer in answers]
    return torch.tensor(rows, dtype=torch.float64)
