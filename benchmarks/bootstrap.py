"""Intervals by the paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Of the interval, in percent; its ends are these percentiles of the draws.
LOW, HIGH = 2.5, 97.5
DRAWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and where it lies in 95 of 100 draws."""

    value: float
    low: float
    high: float


def interval_of_mean(
    values: Sequence[float], *, weights: Sequence[float] | None = None, seed: int, draws: int = DRAWS
) -> Interval:
    """The weighted mean of paired differences, with its interval over draws of the pairs.

    Args:
        values: A difference a pair.
        weights: How much each counts, such as its tokens; drawn together with it. All count the same without.
        seed: Of the draws.
        draws: How many times as many pairs as there are, are drawn with replacement.
    """
    values_P = np.asarray(values, dtype=float)
    weights_P = np.ones_like(values_P) if weights is None else np.asarray(weights, dtype=float)
    picked_DP = np.random.default_rng(seed).integers(len(values_P), size=(draws, len(values_P)))
    means_D = (values_P * weights_P)[picked_DP].sum(axis=1) / weights_P[picked_DP].sum(axis=1)
    low, high = np.percentile(means_D, (LOW, HIGH))
    return Interval(value=float((values_P * weights_P).sum() / weights_P.sum()), low=float(low), high=float(high))
