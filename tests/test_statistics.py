"""Intervals and rank correlations against published values, closed forms and numbers by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hibprune.records.base import Interval
from hibprune.records.measurements import Latency
from hibprune.records.medium import Length
from hibprune.records.statistics import (
    bootstrap_interval,
    spearman,
    split_half_correlation,
    wilson_interval,
)
from hibprune.records.units import Head, Scores, heads_by_layer


def mean(column: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(column.mean(axis=axis))


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(
    successes: int, n: int, low: float, high: float
) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_its_quadratic() -> None:
    z, n, share = 1.959963984540054, 400, 0.95
    for bound in wilson_interval(380, n):
        assert (share - bound) ** 2 == pytest.approx(z**2 * bound * (1 - bound) / n, rel=1e-9)


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [30, 20, 10]) == pytest.approx(-1.0)
    # 1 − 6·Σd²/(n·(n²−1)) with d = 1, −1, 0, 1, −1.
    assert spearman([1, 2, 3, 4, 5], [2, 1, 3, 5, 4]) == pytest.approx(1 - 6 * 4 / (5 * 24))


def test_spearman_gives_ties_their_mean_rank() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_spearman_of_a_constant_is_nothing() -> None:
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_bootstrap_of_a_mean_is_near_the_normal_interval() -> None:
    sample = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap_interval([sample], mean)
    half = 1.96 * sample.std() / math.sqrt(len(sample))
    assert (low, high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=0.012)


def test_bootstrap_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        low, high = bootstrap_interval([generator.exponential(size=60)], mean)
        covered += low <= 1.0 <= high
    # 60 × 0.95 = 57; percentile intervals of skewed samples cover a little less.
    assert covered >= 50


def test_bootstrap_keeps_pairs_together() -> None:
    before = np.random.default_rng(3).uniform(1, 100, size=50)

    def ratio(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(one.sum(axis=axis) / other.sum(axis=axis))

    low, high = bootstrap_interval([before, before / 2], ratio)
    assert (low, high) == pytest.approx((2.0, 2.0))


def test_bootstrap_is_repeatable_and_has_no_width_for_one_row() -> None:
    sample = [1.0, 2.0, 5.0, 9.0]
    assert bootstrap_interval([sample], mean) == bootstrap_interval([sample], mean)
    assert bootstrap_interval([[3.0]], mean) == (3.0, 3.0)


def test_split_half_sees_signal_and_noise() -> None:
    generator = np.random.default_rng(4)
    noise = generator.normal(size=(40, 30))
    signal = noise + 10 * np.arange(30)
    assert split_half_correlation(signal.tolist()) == pytest.approx(1.0)
    # Means of halves of pure noise are negatively related around the mean of all, if at all.
    found = split_half_correlation(noise.tolist())
    assert found is not None
    assert abs(found) < 0.35
    assert split_half_correlation(signal[:3].tolist()) is None
    assert split_half_correlation([[1.0, 2.0]] * 4) == pytest.approx(1.0)


def test_scores_are_means_over_samples() -> None:
    scores = Scores(
        method="m",
        heads=(Head(0, 0), Head(1, 2)),
        samples=("a", "b"),
        per_sample=((1.0, 2.0), (3.0, 6.0)),
    )
    assert scores.values == {Head(0, 0): 2.0, Head(1, 2): 4.0}
    assert scores.split_half is None
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_heads_are_grouped_by_layer_and_sorted() -> None:
    assert heads_by_layer([Head(1, 3), Head(0, 2), Head(1, 0)]) == {0: [2], 1: [0, 3]}


def test_latency_derives_percentiles_from_raw_times() -> None:
    latency = Latency(
        runtime="r", provider="p", threads=1, batch=1, length=Length(value=2.0, unit="seconds"),
        before_ms=tuple(range(1, 102)), after_ms=tuple(value / 2 for value in range(1, 102)),
    )  # fmt: skip
    assert (latency.before.p50, latency.before.p90, latency.before.p99) == (51, 91, 100)
    assert latency.before.real_time_factor == pytest.approx(0.051 / 2)
    assert latency.ratio == pytest.approx(2.0)
    assert latency.ratio_interval == pytest.approx(Interval(2.0, 2.0))
