"""Figures that say how well verdicts agree with people's."""

import itertools
from collections.abc import Sequence

from mesh.lm.grading import CORRECT, LABELS

# Bins of equal width, as in Guo et al., "On Calibration of Modern Neural Networks" (2017).
_BINS = 10


def agreement(probabilities: Sequence[Sequence[float]], labels: Sequence[str]) -> dict[str, float]:
    """Returns figures of the probabilities of `LABELS` for answers that people labelled.

    `macro_f1_two_way` is that of right against not right, where a score of a half or more says right and partly right
    scores half; `macro_f1_labels` that of the likeliest label; `auc` and `calibration_error` are those of the score.
    """
    scores = [correct + 0.5 * partially for correct, partially, _ in probabilities]
    truths = [label == CORRECT for label in labels]
    guesses = likeliest(probabilities)
    return {
        "macro_f1_two_way": macro_f1([str(score >= 0.5) for score in scores], list(map(str, truths))),
        "macro_f1_labels": macro_f1(guesses, labels),
        "auc": area_under_curve(scores, truths),
        "calibration_error": calibration_error(scores, truths),
    }


def likeliest(probabilities: Sequence[Sequence[float]]) -> list[str]:
    """Returns the label with the highest probability of each answer."""
    return [LABELS[max(range(len(LABELS)), key=row.__getitem__)] for row in probabilities]


def macro_f1(predicted: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the mean F1 over the labels that occur in `actual`."""
    scores = [f1_of(label, predicted, actual) for label in sorted(set(actual))]
    return sum(scores) / len(scores)


def f1_of(label: str, predicted: Sequence[str], actual: Sequence[str]) -> float:
    """Returns the F1 of one label: the harmonic mean of precision and recall."""
    hits = sum(guess == truth == label for guess, truth in zip(predicted, actual, strict=True))
    return 2 * hits / max(1, sum(guess == label for guess in predicted) + sum(truth == label for truth in actual))


def area_under_curve(scores: Sequence[float], truths: Sequence[bool]) -> float:
    """Returns the probability that a right answer scores above a wrong one; ties count half."""
    rights = [score for score, truth in zip(scores, truths, strict=True) if truth]
    wrongs = [score for score, truth in zip(scores, truths, strict=True) if not truth]
    wins = sum((right > wrong) + 0.5 * (right == wrong) for right in rights for wrong in wrongs)
    return wins / max(1, len(rights) * len(wrongs))


def calibration_error(probabilities: Sequence[float], truths: Sequence[bool]) -> float:
    """Returns the expected calibration error of the probability that an answer is right, from 0 to 1."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for probability, truth in zip(probabilities, truths, strict=True):
        bins.setdefault(min(_BINS - 1, int(probability * _BINS)), []).append((probability, truth))
    gaps = (
        abs(sum(probability for probability, _ in members) - sum(truth for _, truth in members))
        for members in bins.values()
    )
    return sum(gaps) / max(1, len(probabilities))


def recall_at(false_share: float, harmful: Sequence[float], harmless: Sequence[float]) -> float:
    """Returns the share of harmful texts whose scores are above those of all but a share of the harmless texts.

    Texts that score the same as the last harmless one that must pass are not caught.
    """
    passing = sorted(harmless, reverse=True)[int(false_share * len(harmless)) :]
    limit = passing[0] if passing else float("-inf")
    return sum(score > limit for score in harmful) / max(1, len(harmful))


def average_precision(scores: Sequence[float], truths: Sequence[bool]) -> float:
    """Returns the area under the curve of precision over recall: the mean precision at each true text.

    Texts of equal scores count as one step, so that their order does not matter.
    """
    area, hits, count = 0.0, 0, 0
    for _, members in itertools.groupby(
        sorted(zip(scores, truths, strict=True), reverse=True), key=lambda pair: pair[0]
    ):
        rows = [truth for _, truth in members]
        hits, count = hits + sum(rows), count + len(rows)
        area += sum(rows) * hits / count
    return area / max(1, sum(truths))


def screening(harms: Sequence[float], flags: Sequence[bool], truths: Sequence[bool]) -> dict[str, float]:
    """Returns figures of texts that were screened: what was caught, and what was blocked though it is harmless.

    Args:
        harms: The probability that each text is harmful.
        flags: Whether each text was flagged.
        truths: Whether each text is harmful. Figures that need texts of a kind that there is none of are left out.
    """
    harmful = [harm for harm, truth in zip(harms, truths, strict=True) if truth]
    harmless = [harm for harm, truth in zip(harms, truths, strict=True) if not truth]
    figures: dict[str, float] = {"texts": len(truths)}
    if harmful:
        figures["caught"] = sum(flag and truth for flag, truth in zip(flags, truths, strict=True)) / len(harmful)
    if harmless:
        blocked = sum(flag and not truth for flag, truth in zip(flags, truths, strict=True))
        figures["blocked though harmless"] = blocked / len(harmless)
    if harmful and harmless:
        figures["caught at 10 % blocked"] = recall_at(0.1, harmful, harmless)
        figures["average precision"] = average_precision(harms, truths)
    return figures
