"""The statistics every figure of ours carries, from scipy: intervals and rank correlation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 2000


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which keeps its coverage near 0 and 1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return (float(interval.low), float(interval.high))


def bootstrap_interval(
    columns: Sequence[Sequence[float]], statistic: Callable[..., np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of a statistic over paired columns.

    `statistic` takes the columns and `axis`, as numpy's reductions do; rows are resampled together.
    With fewer than two rows there is nothing to resample, and the interval has no width. Resamples
    on which the statistic is not finite, such as a word error rate of clips without words, are left
    out.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if len(arrays[0]) < 2:
        value = float(statistic(*arrays, axis=0))
        return (value, value)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # scipy's own interval, which is not used, has no value where one resample has none.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        drawn = bootstrap(
            arrays,
            statistic,
            n_resamples=BOOTSTRAP_RESAMPLES,
            method="percentile",
            paired=True,
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn[np.isfinite(drawn)], [tail, 1 - tail])
    return (float(low), float(high))


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman rank correlation; 0 when either side is constant."""
    from scipy.stats import spearmanr

    if len(set(map(float, first))) < 2 or len(set(map(float, second))) < 2:
        return 0.0
    return float(spearmanr(first, second).statistic)


def split_half_correlation(
    per_sample: Sequence[Sequence[float]], splits: int = 20, seed: int = 0
) -> float | None:
    """Mean Spearman correlation of column means between random halves of the rows.

    None with fewer than 4 rows.
    """
    matrix = np.asarray(per_sample, dtype=np.float64)
    n = len(matrix)
    if n < 4:
        return None
    generator = np.random.default_rng(seed)
    correlations = []
    for _ in range(splits):
        order = generator.permutation(n)
        first, second = matrix[order[: n // 2]], matrix[order[n // 2 :]]
        correlations.append(spearman(first.mean(axis=0), second.mean(axis=0)))
    return float(np.mean(correlations))
