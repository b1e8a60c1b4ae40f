"""The statistics every figure of ours carries, from scipy: intervals and rank correlation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np

CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 20_000
"""Enough that an end of an interval moves with the seed by a fiftieth of its half width."""
NUMBERS_AT_ONCE = 2_000_000
"""What bounds memory: a resample has a number for each clip."""
FEW = 30
"""Below this many clips or pairs an interval is rough, and so wide that it settles little."""


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927), which keeps its coverage near 0 and 1."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return (float(interval.low), float(interval.high))


def paired_interval(lost: int, won: int, n: int) -> tuple[float, float]:
    """95 % score interval of the share lost less the share won, of n pairs (Tango 1998).

    It has a width also where nothing was lost or won: no change on n clips does not prove that
    there is none on others.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    quantile = float(norm.ppf((1 + CONFIDENCE) / 2))
    estimate = (lost - won) / n
    almost = 1 - 1e-12

    def score(difference: float) -> float:
        b = (2 * n - lost + won) * difference - lost - won
        c = -won * difference * (1 - difference)
        # Of the share won, the most likely if the difference were this one.
        likely = (np.sqrt(b * b - 8 * n * c) - b) / (4 * n)
        variance = n * (2 * likely + difference * (1 - difference))
        return float((lost - won - n * difference) / np.sqrt(max(variance, 1e-300)))

    def end(limit: float, wanted: float) -> float:
        if estimate == limit or (score(almost * limit) - wanted) * (score(estimate) - wanted) > 0:
            return limit
        return float(brentq(lambda at: score(at) - wanted, estimate, almost * limit))

    return (end(-1.0, quantile), end(1.0, -quantile))


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of paired differences in whole numbers, if either sign were as likely.

    Exact (Fisher 1935): no draws, hence no seed. Of differences that are -1, 0 or 1 it is McNemar's
    exact test. The chance of every sum is the inverse Fourier transform of the product of the
    differences' cosines.

    Raises:
        ValueError: a difference is not a whole number.
    """
    given = np.asarray(differences, dtype=np.float64)
    if not np.array_equal(given, np.rint(given)):
        raise ValueError("differences of counts should be whole numbers")
    sizes, numbers = np.unique(np.abs(given[given != 0]).astype(np.int64), return_counts=True)
    reach, seen = int((sizes * numbers).sum()), int(abs(given.sum()))
    if seen == 0:
        return 1.0
    length = 2 * reach + 1
    angles = 2 * np.pi * np.arange(reach + 1) / length
    transform = np.ones(reach + 1)
    for size, number in zip(sizes, numbers, strict=True):
        transform *= np.cos(size * angles) ** number
    chances = np.fft.irfft(transform, n=length)
    # Sums below zero stand at the end; either side has the same chances.
    return float(min(1.0, 2 * chances[seen : reach + 1].sum()))


def bootstrap_interval(
    columns: Sequence[Sequence[float]], statistic: Callable[..., np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval (Efron 1979) of a statistic over paired columns.

    `statistic` takes the columns and `axis`, as numpy's reductions do; rows are resampled together,
    and their order does not matter. With fewer than two rows there is nothing to resample, and the
    interval has no width. Resamples on which the statistic is not finite, such as a word error rate
    of clips without words, are left out.

    Raises:
        ValueError: the statistic is finite on no resample.
    """
    from scipy.stats import DegenerateDataWarning, bootstrap

    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    order = np.lexsort(arrays)
    arrays = [array[order] for array in arrays]
    if len(order) < 2:
        value = float(statistic(*arrays, axis=0))
        return (value, value)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # scipy's own interval, which is not used, has no value where one resample has none.
        warnings.simplefilter("ignore", DegenerateDataWarning)
        drawn = bootstrap(
            arrays,
            statistic,
            n_resamples=BOOTSTRAP_RESAMPLES,
            batch=max(1, NUMBERS_AT_ONCE // len(order)),
            method="percentile",
            paired=True,
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    return percentile_interval(drawn)


def error_rate_interval(
    errors: Sequence[float], counted: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval over clips of all errors by all that was counted.

    It is never narrower than Wilson's, which takes the words of a clip for independent: a resample
    of clips without errors never shows one, and 0 % would come with an interval of no width.
    """
    wrong, words = np.asarray(errors, dtype=np.float64), np.asarray(counted, dtype=np.float64)
    low, high = bootstrap_interval([errors, counted], _rate, seed)
    if wrong.sum() <= words.sum():
        others = wilson_interval(int(wrong.sum()), int(words.sum()))
        low, high = min(low, others[0]), max(high, others[1])
    return (low, high)


def error_change_interval(
    differences: Sequence[float], counted: Sequence[float], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the change of an error rate, from each clip's change of errors.

    It holds 0 where `sign_flip_p_value` finds no change, whatever the seed, and only there. The
    ends are `paired_interval`'s where each clip counts once and is right or wrong; elsewhere those
    of the bootstrap over clips, and never narrower than `paired_interval`'s over words.
    """
    change, words = np.asarray(differences, dtype=np.float64), np.asarray(counted, dtype=np.float64)
    estimate, total = float(_rate(change, words)), int(words.sum())
    lost, won = int(np.maximum(change, 0).sum()), int(np.maximum(-change, 0).sum())
    ends = [estimate]
    if lost + won <= total:
        ends += paired_interval(lost, won, total)
    if np.any(words != 1) or np.any(np.abs(change) > 1):
        ends += bootstrap_interval([differences, counted], _rate, seed)
    low, high = min(ends), max(ends)
    if sign_flip_p_value(differences) >= 1 - CONFIDENCE:
        return (min(low, 0.0), max(high, 0.0))
    # Half an error is less than what any two models can differ by.
    return (max(low, 0.5 / total), high) if estimate > 0 else (low, min(high, -0.5 / total))


def _rate(errors: np.ndarray, counted: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray(errors.sum(axis=axis) / counted.sum(axis=axis))


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
    at_once = max(1, NUMBERS_AT_ONCE // n)
    for start in range(0, BOOTSTRAP_RESAMPLES, at_once):
        size = min(at_once, BOOTSTRAP_RESAMPLES - start)
        draws = generator.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        # A resample of clips without words has no rate.
        with np.errstate(divide="ignore", invalid="ignore"):
            rates[start : start + size] = (draws @ rows.T) / (draws @ weights)[:, None]
    return rates


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of those resampled values that are finite.

    Raises:
        ValueError: none is.
    """
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        raise ValueError("the statistic has no finite value on any resample")
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return (float(low), float(high))


def area_under(shares: Sequence[float], values: np.ndarray) -> np.ndarray:
    """Trapezoidal area under values (…, shares), divided by the range of the shares.

    So it is the mean height of the curve, in the values' own unit.
    """
    return np.asarray(np.trapezoid(values, shares, axis=-1) / (shares[-1] - shares[0]))


def spearman(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Spearman rank correlation; 0 when either side is constant."""
    return float(rank_pearson(np.asarray(first), np.asarray(second)))


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
    means = np.empty((2, splits, matrix.shape[1]))
    for split in range(splits):
        order = generator.permutation(n)
        for half, rows in enumerate((order[: n // 2], order[n // 2 :])):
            means[half, split] = matrix[rows].mean(axis=0)
    return float(rank_pearson(*means).mean())
