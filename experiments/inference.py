"""Statistics of paired runs: differences with intervals, a permutation test, a bootstrap, the verdict.

A pair is two runs with the same seed, and so with the same training rows. Everything is second - first.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

SIGNIFICANT = 0.01  # of a two-sided permutation test over seeds: below it a gain or a loss is claimed
NEGLIGIBLE = 0.01  # an interval within this of 0 is no gain


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean of second - first over pairs, with its 95 % interval (Student's t over the pairs).

    One pair has no interval: its ends are NaN.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) < 2:
        return mean, math.nan, math.nan
    if np.ptp(differences) == 0:
        return mean, mean, mean
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, stats.sem(differences))
    return mean, float(low), float(high)


def exact_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of the paired permutation test on the mean difference: all 2^n ways to exchange signs."""
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    sums = np.zeros(1)
    for difference in np.abs(differences):  # p depends on no sign of the pairs
        sums = np.concatenate([sums + difference, sums - difference])
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-12))


def holm(values: Sequence[float]) -> list[float]:
    """The p of several tests, corrected by Holm's method (1979), in their order."""
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    corrected = np.minimum(1, np.maximum.accumulate(np.asarray(values)[order] * factors))
    return [float(value) for value in corrected[np.argsort(order)]]


def bootstrap(first: np.ndarray, second: np.ndarray, draws: int = 4000) -> tuple[float, float]:
    """95 % interval of the mean difference over seeds and dev rows at once.

    first, second: (seeds, rows), what each row scores, for example 1 where the prediction is right. Seeds
    and rows are drawn with replacement, each on its own: the interval is for other seeds and other rows.
    """
    random = np.random.default_rng(0)
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    seeds, rows = differences.shape
    means = np.empty(draws)
    for i in range(draws):
        seed_weights = np.bincount(random.integers(seeds, size=seeds), minlength=seeds) / seeds
        row_weights = np.bincount(random.integers(rows, size=rows), minlength=rows) / rows
        means[i] = seed_weights @ differences @ row_weights
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def verdict(
    first: Sequence[float], second: Sequence[float], over_rows: tuple[float, float] | None = None
) -> str:
    """The rule that is fixed before the runs: gain or loss, no gain, or not decided.

    over_rows: the interval over seeds and dev rows, if the rule asks for it (`tuned.py`). A claim needs 0
    outside of it, and it decides whether there is no gain. Without it the interval over seeds does.
    """
    p = exact_p(first, second)
    mean, *over_seeds = paired(first, second)
    low, high = over_rows or over_seeds
    if p < SIGNIFICANT and (over_rows is None or low > 0 or high < 0):
        size = f"= {p:.4f}" if p >= 0.0001 else "< 0.0001"
        return f"{'gain' if mean > 0 else 'loss'} (p {size})"
    if low > -NEGLIGIBLE and high < NEGLIGIBLE:
        return f"no gain (p = {p:.2f}; the interval lies within ±{NEGLIGIBLE:g})"
    return f"not decided (p = {p:.2f})"
