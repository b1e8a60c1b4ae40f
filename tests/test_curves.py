"""Areas, intervals and labels of a comparison, on numbers small enough to work out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import bootstrap, pearsonr, spearmanr

from hibprune.comparing.curves import Track, curves_of, points_of
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import (
    area_under,
    pearson,
    percentile_interval,
    rank_pearson,
    resampled_error_rates,
)
from hibprune.records.units import Head
from hibprune.report.curves import spread

ONE, TWO, THREE, OTHER = (
    (Head(0, 0),),
    (Head(0, 0), Head(0, 1)),
    (Head(0, 0), Head(0, 1), Head(1, 0)),
    (Head(1, 1),),
)


def accuracy(*wrong: float) -> Evaluation:
    return Evaluation(
        metric="accuracy",
        value=1 - sum(wrong) / len(wrong),
        interval=Interval(0.25, 0.75),
        n=len(wrong),
        higher_is_better=True,
        errors=wrong,
        counted=(1.0,) * len(wrong),
    )


def wer(errors: list[float], words: list[float]) -> Evaluation:
    return Evaluation(
        metric="WER",
        value=sum(errors) / sum(words),
        interval=Interval(0.0, 1.0),
        n=len(words),
        higher_is_better=False,
        errors=tuple(errors),
        counted=tuple(words),
    )


def test_the_area_is_the_mean_height() -> None:
    # Trapezoids of 0.1·(1 + 0.8)/2 and 0.3·(0.8 + 0.2)/2, over a range of 0.4.
    area = area_under([0.0, 0.1, 0.4], np.array([1.0, 0.8, 0.2]))
    assert area == pytest.approx((0.09 + 0.15) / 0.4)
    rows = np.array([[1.0, 0.8, 0.2], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(area_under([0.0, 0.1, 0.4], rows), [0.6, 0.5])


def test_resampled_rates_spread_as_scipys_bootstrap_says() -> None:
    generator = np.random.default_rng(1)
    words = generator.integers(3, 20, 300).astype(float)
    errors = generator.binomial(words.astype(int), 0.2).astype(float)

    def ratio(errors: np.ndarray, words: np.ndarray, axis: int) -> np.ndarray:
        return errors.sum(axis=axis) / words.sum(axis=axis)

    theirs = bootstrap((errors, words), ratio, paired=True, method="percentile", rng=2)
    rates = resampled_error_rates([errors], words)
    assert rates.shape[1] == 1
    np.testing.assert_allclose(
        percentile_interval(rates[:, 0]), theirs.confidence_interval, atol=2e-3
    )
    assert rates.mean() == pytest.approx(errors.sum() / words.sum(), abs=1e-3)


def test_all_rows_see_the_same_clips() -> None:
    words = np.full(50, 10.0)
    errors = np.random.default_rng(0).integers(0, 9, 50).astype(float)
    rates = resampled_error_rates([errors, errors + 1], words)
    np.testing.assert_allclose(rates[:, 1] - rates[:, 0], 0.1)
    assert np.ptp(rates[:, 0]) > 0.05


def test_a_curve_starts_at_the_whole_model() -> None:
    evaluated = {
        (): accuracy(0, 0, 0, 0),
        ONE: accuracy(1, 0, 0, 0),
        THREE: accuracy(1, 1, 1, 0),
    }
    track = Track("hib", "global", (0.25, 0.8), ((ONE,), (THREE,)))
    (curve,) = curves_of([track], evaluated, heads=4, reference="hib")
    assert [(p.fraction, p.removed, p.share, p.value) for p in curve.points] == [
        (0.25, 1, 0.25, 0.75),
        (0.8, 3, 0.75, 0.25),
    ]
    assert curve.points[0].interval == (0.25, 0.75), "a single draw keeps the metric's own interval"
    assert curve.points[1].heads == {0: (0, 1), 1: (0,)}
    assert curve.area is not None
    # (0.25·(1 + 0.75)/2 + 0.5·(0.75 + 0.25)/2) / 0.75
    assert curve.area.value == pytest.approx((0.21875 + 0.25) / 0.75)
    assert curve.to_reference is None


def test_draws_are_averaged_and_keep_their_range() -> None:
    evaluated = {
        (): accuracy(0, 0, 0, 0),
        ONE: accuracy(1, 0, 0, 0),
        OTHER: accuracy(1, 1, 1, 0),
    }
    tracks = [
        Track("hib", "global", (0.3,), ((ONE,),)),
        Track("random", "global", (0.3,), ((ONE, OTHER, OTHER),)),
    ]
    _, drawn = curves_of(tracks, evaluated, heads=4, reference="hib")
    (point,) = drawn.points
    assert point.value == pytest.approx((0.75 + 0.25 + 0.25) / 3)
    assert (point.lowest, point.highest) == (0.25, 0.75)
    assert point.heads == {0: (0,)}, "those of the first draw"
    assert drawn.to_reference is not None
    # Half the difference of the heights at the end, since both start at the whole model.
    assert drawn.to_reference.value == pytest.approx((1.25 / 3 - 0.75) / 2)


def test_differences_are_paired_over_clips() -> None:
    words = [10.0] * 40
    some = [float(number % 8) for number in range(40)]
    evaluated = {
        (): wer([0.0] * 40, words),
        ONE: wer(some, words),
        OTHER: wer([errors + 2 for errors in some], words),
    }
    tracks = [
        Track("hib", "layerwise", (0.3,), ((ONE,),)),
        Track("other", "layerwise", (0.3,), ((OTHER,),)),
    ]
    first, second = curves_of(tracks, evaluated, heads=4, reference="hib")
    assert first.area is not None
    assert first.area.interval.high - first.area.interval.low > 0.02
    assert second.to_reference is not None
    # Two more words of ten wrong in every clip: chance has no part in the difference.
    assert second.to_reference.value == pytest.approx(0.1)
    assert second.to_reference.interval == pytest.approx((0.1, 0.1))


def test_intervals_of_accuracy_count_what_is_right() -> None:
    evaluated = {(): accuracy(*[0.0] * 6), ONE: accuracy(*[0.0] * 6), OTHER: accuracy(*[1.0] * 6)}
    tracks = [
        Track("hib", "global", (0.3,), ((ONE,),)),
        Track("other", "global", (0.3,), ((OTHER,),)),
    ]
    always, never = curves_of(tracks, evaluated, heads=4, reference="hib")
    assert always.area is not None
    assert never.to_reference is not None
    assert (always.area.value, always.area.interval) == (1, (1, 1))
    # From all right to none right: half on the way.
    assert (never.to_reference.value, never.to_reference.interval) == (-0.5, (-0.5, -0.5))


def test_points_alone_have_no_area() -> None:
    evaluated = {(): accuracy(0, 0), TWO: accuracy(1, 0)}
    (curve,) = points_of([Track("hib", "global", (0.5,), ((TWO,),))], evaluated, heads=4)
    assert (curve.area, curve.to_reference) == (None, None)
    assert [point.value for point in curve.points] == [0.5]


def test_correlations_agree_with_scipy() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.integers(0, 6, (2, 5, 30)).astype(float)
    for number in range(5):
        one, other = first[number], second[number]
        assert pearson(first, second)[number] == pytest.approx(pearsonr(one, other).statistic)
        assert rank_pearson(first, second)[number] == pytest.approx(spearmanr(one, other).statistic)
    assert pearson(np.ones(4), np.arange(4.0)) == 0


@pytest.mark.parametrize(
    "wanted",
    [[0.5] * 6, [0.0, 0.01, 0.02, 0.98, 0.99, 1.0], [0.1, 0.4, 0.41, 0.42, 0.6, 0.9]],
)
def test_names_beside_curves_do_not_cover_each_other(wanted: list[float]) -> None:
    heights = [0.1, 0.05, 0.1, 0.05, 0.1, 0.05]
    places = spread(wanted, heights)
    edges = [
        (place - height / 2, place + height / 2)
        for place, height in zip(places, heights, strict=True)
    ]
    assert all(low[1] <= high[0] + 1e-9 for low, high in itertools.pairwise(edges))
    assert edges[0][0] >= -1e-9
    assert edges[-1][1] <= 1 + 1e-9


def test_names_with_room_stay_where_they_belong() -> None:
    assert spread([0.2, 0.5, 0.8], [0.1, 0.1, 0.1]) == pytest.approx([0.2, 0.5, 0.8])
