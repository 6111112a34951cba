"""Intervals by the paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The ends of a 95 % interval, as percentiles of the resampled means.
LOW, HIGH = 2.5, 97.5
DRAWS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def interval_of_mean(
    values: Sequence[float], *, weights: Sequence[float] | None = None, seed: int, draws: int = DRAWS
) -> Interval:
    """Returns the weighted mean of paired differences, with its interval over resamples of the pairs.

    Args:
        values: The difference of each pair.
        weights: The weight of each pair, such as its number of tokens; it is resampled with its pair. Equal by
            default.
        seed: Seed of the resampling.
        draws: Number of resamples. Each draws as many pairs as there are, with replacement.
    """
    values_P = np.asarray(values, dtype=float)
    weights_P = np.ones_like(values_P) if weights is None else np.asarray(weights, dtype=float)
    pairs_DP = np.random.default_rng(seed).integers(len(values_P), size=(draws, len(values_P)))
    means_D = (values_P * weights_P)[pairs_DP].sum(axis=1) / weights_P[pairs_DP].sum(axis=1)
    low, high = np.percentile(means_D, (LOW, HIGH))
    return Interval(value=float((values_P * weights_P).sum() / weights_P.sum()), low=float(low), high=float(high))
