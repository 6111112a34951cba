"""How a grader is asked for a verdict, in training and in serving, and how its probabilities are calibrated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mesh.lm.chat import Prompt, Role, Turn
from mesh.tutoring.criteria import Criteria, one_line
from mesh.tutoring.profile import StudentProfile

# Labels that a reply may begin with. The first token of each differs from that of the others.
CORRECT, PARTIALLY_CORRECT, INCORRECT = "Correct", "Partially correct", "Incorrect"
LABELS = (CORRECT, PARTIALLY_CORRECT, INCORRECT)

_INSTRUCTION = "You grade the answers of students."
# Otherwise a label that is never likely would have an infinite logarithm.
_LEAST_WEIGHT = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCalibration:
    """Turns a grader's probabilities into calibrated ones: a multinomial logistic regression on held-out answers.

    Platt, "Probabilistic Outputs for Support Vector Machines" (1999); Guo et al., "On Calibration of Modern Neural
    Networks" (2017).

    Attributes:
        scale: Factor of the logarithm of each probability; the inverse of a temperature.
        biases: Added for each label, in the order of `LABELS`.
        slopes: For each label, the factor of each feature of `mesh.tutoring.overlap`.
    """

    scale: float
    biases: tuple[float, ...]
    slopes: tuple[tuple[float, ...], ...]

    def apply(self, weights: Sequence[float], features: Sequence[float]) -> list[float]:
        """Returns the calibrated probabilities, in the order of the weights."""
        scores = [
            self.scale * math.log(max(weight, _LEAST_WEIGHT))
            + bias
            + math.fsum(slope * feature for slope, feature in zip(slopes, features, strict=True))
            for weight, bias, slopes in zip(weights, self.biases, self.slopes, strict=True)
        ]
        highest = max(scores)
        ratios = [math.exp(score - highest) for score in scores]
        return [ratio / math.fsum(ratios) for ratio in ratios]


def grader_prompt(answer: str, criteria: Criteria) -> Prompt:
    """Returns the prompt that a trained grader continues with one of `LABELS`: short, as a verdict is one prefill."""
    text = f"{criteria.described}\nStudent's answer: {one_line(answer)}"
    return Prompt(profile=StudentProfile(), turns=(Turn(role=Role.STUDENT, text=text),), instruction=_INSTRUCTION)


def ordered(weights: Mapping[str, float]) -> list[float]:
    """Returns the weights of `LABELS`, in their order."""
    return [weights[label] for label in LABELS]
