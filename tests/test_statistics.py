"""Intervals and rank correlations against published values, closed forms and numbers by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm

from hibprune.records.base import Interval
from hibprune.records.measurements import Latency
from hibprune.records.medium import Length
from hibprune.records.statistics import (
    bootstrap_interval,
    error_change_interval,
    error_rate_interval,
    paired_interval,
    percentile_interval,
    resampled_error_rates,
    sign_flip_p_value,
    spearman,
    split_half_correlation,
    wilson_interval,
)
from hibprune.records.units import Head, Scores, heads_by_layer
from hibprune.records.variants import VariantLatency


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
    times = tuple(map(float, range(1, 102)))
    latency = Latency(
        runtime="r", provider="p", threads=1, batch=1, length=Length(value=2.0, unit="seconds"),
        times={
            "whole": {"original": times, "pruned": tuple(value / 2 for value in times)},
            "encoder": {"original": times, "pruned": tuple(4 * value for value in times)},
        },
    )  # fmt: skip
    before, after = (VariantLatency.of(latency, name) for name in ("original", "pruned"))
    assert (before.times.p50, before.times.p90, before.times.p99) == (51, 91, 100)
    assert (after.times.p50, after.times.p90, after.times.p99) == (25.5, 45.5, 50)
    assert before.times.real_time_factor == pytest.approx(0.051 / 2)
    assert (before.ratio, before.ratio_interval) == (1, Interval(1, 1))
    assert after.ratio == pytest.approx(2.0)
    assert after.ratio_interval == pytest.approx(Interval(2.0, 2.0))
    assert before.repetitions == after.repetitions == 101
    (part,) = after.parts
    assert (part.part, part.times.p50, part.ratio) == ("encoder", 204, 0.25)
    # A part hears no clip of its own.
    assert part.times.real_time_factor is None


# Changes -------------------------------------------------------------------------------------


def likelihood_score(lost: int, won: int, n: int, difference: float) -> float:
    """Tango's statistic with the likeliest share won found by search, not by his formula."""

    def unlikely(share: float) -> float:
        cells = ((lost, share + difference), (won, share), (n - lost - won, 1 - 2 * share))
        total = cells[2][1] - difference
        shares = (cells[0][1], cells[1][1], total)
        return -sum(
            number * math.log(max(p, 1e-300))
            for (number, _), p in zip(cells, shares, strict=True)
            if number
        )

    bounds = (max(0.0, -difference), (1 - difference) / 2)
    share = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    variance = n * (2 * share + difference * (1 - difference))
    return float((lost - won - n * difference) / math.sqrt(variance))


@pytest.mark.parametrize(
    ("lost", "won", "n"),
    [(20, 0, 100), (0, 20, 100), (1, 0, 44), (6, 5, 80), (12, 1, 30), (7, 0, 80), (0, 0, 50)],
)
def test_the_ends_of_a_paired_interval_are_where_its_score_is_at_its_limit(
    lost: int, won: int, n: int
) -> None:
    low, high = paired_interval(lost, won, n)
    assert low < (lost - won) / n < high
    assert likelihood_score(lost, won, n, low) == pytest.approx(norm.ppf(0.975), abs=2e-3)
    assert likelihood_score(lost, won, n, high) == pytest.approx(-norm.ppf(0.975), abs=2e-3)


@pytest.mark.parametrize("n", [1, 12, 432])
def test_no_change_at_all_has_a_paired_interval_with_a_width(n: int) -> None:
    """In closed form: z² / (n + z²) either way."""
    z2 = norm.ppf(0.975) ** 2
    assert paired_interval(0, 0, n) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)))


def test_a_paired_interval_stays_within_what_can_be() -> None:
    """All of 30 lost: his equation becomes n(1 − Δ) = z²(1 + Δ)."""
    z2 = norm.ppf(0.975) ** 2
    low = (30 - z2) / (30 + z2)
    assert paired_interval(30, 0, 30) == pytest.approx((low, 1))
    assert paired_interval(0, 30, 30) == pytest.approx((-1, -low))


@pytest.mark.parametrize("seed", range(6))
def test_sign_flips_are_counted_exactly(seed: int) -> None:
    differences = np.random.default_rng(seed).integers(-4, 5, size=10)
    seen = abs(differences.sum())
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=10)]
    expected = np.mean([total >= seen for total in sums])
    assert sign_flip_p_value(differences.tolist()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(7, 0), (30, 70), (5, 5), (120, 90), (1, 0)])
def test_of_labels_it_is_mcnemars_exact_test(lost: int, won: int) -> None:
    differences = [1.0] * lost + [-1.0] * won + [0.0] * 300
    expected = binomtest(lost, lost + won, 0.5).pvalue
    assert sign_flip_p_value(differences) == pytest.approx(expected, abs=1e-12)


def test_of_many_clips_it_is_near_the_normal_one() -> None:
    generator = np.random.default_rng(0)
    differences = generator.integers(-20, 22, size=2620)
    normal = 2 * norm.sf(abs(differences.sum()) / math.sqrt(np.square(differences).sum()))
    assert sign_flip_p_value(differences.tolist()) == pytest.approx(normal, rel=0.02)


def test_parts_of_errors_are_none() -> None:
    assert sign_flip_p_value([]) == 1
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip_p_value([0.5, 1])


SOME_CHANGES = (
    [0] * 40,
    [1] + [0] * 39,
    [1] * 4 + [0] * 36,
    [1] * 6 + [0] * 34,
    [-3] * 9 + [1] * 31,
)


@pytest.mark.parametrize("changes", SOME_CHANGES)
@pytest.mark.parametrize("words", [1, 12])
def test_a_change_of_words_holds_nothing_where_the_test_finds_nothing(
    changes: list[int], words: int
) -> None:
    low, high = error_change_interval(changes, [words] * 40)
    value = sum(changes) / (40 * words)
    assert low < high
    assert low <= value <= high
    assert (low <= 0 <= high) == (sign_flip_p_value(changes) >= 0.05)
    opposite = error_change_interval([-change for change in changes], [words] * 40)
    assert opposite == pytest.approx((-high, -low), abs=1e-3)


def test_rates_without_errors_are_not_certain() -> None:
    """By Wilson's closed form for 0 of 480 words, z² / (n + z²), and for all of them."""
    z2 = norm.ppf(0.975) ** 2
    assert error_rate_interval([0] * 40, [12] * 40) == pytest.approx((0, z2 / (480 + z2)))
    assert error_rate_interval([12] * 40, [12] * 40) == pytest.approx((480 / (480 + z2), 1))
    low, high = error_rate_interval([1], [12])
    assert low < 1 / 12 < high
    # More errors than words are no share of them.
    assert error_rate_interval([24] * 40, [12] * 40) == (2, 2)


def test_clips_that_err_together_widen_the_interval_of_words() -> None:
    errors, words = [12, 0, 0, 0] * 10, [12] * 40
    low, high = error_rate_interval(errors, words)
    # A share of 10 of 40 clips: 0.25 ± 1.96 · sqrt(0.25 · 0.75 / 40).
    assert (low, high) == pytest.approx((0.25 - 0.134, 0.25 + 0.134), abs=0.02)


def test_an_interval_does_not_depend_on_the_order_of_the_clips() -> None:
    generator = np.random.default_rng(0)
    errors, words = generator.integers(0, 4, size=50), generator.integers(4, 20, size=50)
    order = generator.permutation(50)
    assert error_rate_interval(errors[order], words[order]) == error_rate_interval(errors, words)
    assert error_change_interval(errors[order] - 1, words[order]) == error_change_interval(
        errors - 1, words
    )


def test_resamples_without_words_are_left_out() -> None:
    """Of two clips one is wordless: a quarter of the resamples has no rate."""
    rates = resampled_error_rates([[0, 1], [1, 2]], [0, 3])
    assert 0.2 < np.mean(~np.isfinite(rates[:, 0])) < 0.3
    low, high = percentile_interval(rates[:, 0])
    assert (low, high) == pytest.approx((1 / 3, 1 / 3))
    assert all(map(math.isfinite, error_rate_interval([0, 1], [0, 3])))
    with pytest.raises(ValueError, match="no finite value"):
        percentile_interval(np.array([math.nan, math.inf]))
