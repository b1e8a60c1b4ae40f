"""The statistics every figure of ours carries, from scipy: intervals and rank correlation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 2000
RESAMPLES_AT_ONCE = 200
"""What bounds memory: a row of draws has a number for each clip."""


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


def resampled_error_rates(
    errors: Sequence[Sequence[float]], counted: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Error rates (resamples, rows) over clips drawn with replacement (Efron 1979).

    Every row of `errors` sees the same draw, so that differences of rows are paired.
    """
    rows, weights = np.asarray(errors, dtype=np.float64), np.asarray(counted, dtype=np.float64)
    n = len(weights)
    generator = np.random.default_rng(seed)
    rates = np.empty((BOOTSTRAP_RESAMPLES, len(rows)))
    for start in range(0, BOOTSTRAP_RESAMPLES, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, BOOTSTRAP_RESAMPLES - start)
        draws = generator.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        rates[start : start + size] = (draws @ rows.T) / (draws @ weights)[:, None]
    return rates


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return (float(low), float(high))


def area_under(shares: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Trapezoidal area under values (…, shares), divided by the range of the shares.

    So it is the mean height of the curve, in the values' own unit.
    """
    return np.asarray(np.trapezoid(values, shares, axis=-1) / (shares[-1] - shares[0]))


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman rank correlation; 0 when either side is constant."""
    from scipy.stats import spearmanr

    if len(set(map(float, first))) < 2 or len(set(map(float, second))) < 2:
        return 0.0
    return float(spearmanr(first, second).statistic)


def pearson(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson correlation along an axis; 0 where either side is constant."""
    a = first - first.mean(axis=axis, keepdims=True)
    b = second - second.mean(axis=axis, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=axis) * (b * b).sum(axis=axis))
    product = (a * b).sum(axis=axis)
    return np.asarray(np.where(scale > 0, product / np.where(scale > 0, scale, 1), 0.0))


def rank_pearson(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman correlation along an axis: Pearson's of the ranks, ties sharing theirs."""
    from scipy.stats import rankdata

    return pearson(rankdata(first, axis=axis), rankdata(second, axis=axis), axis)


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
