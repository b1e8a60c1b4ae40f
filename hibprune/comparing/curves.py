"""From evaluated plans to curves: points, areas, and intervals over the same resampled clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hibprune.comparing.measuring import Silent
from hibprune.records.base import Interval
from hibprune.records.comparison import NO_REPAIR, Curve, Estimate, Point
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import area_under, percentile_interval, resampled_error_rates
from hibprune.records.units import heads_by_layer


@dataclass(frozen=True)
class Track:
    """A method in one scope: for each rising fraction, the heads that each draw would remove."""

    label: str
    scope: str
    fractions: tuple[float, ...]
    silent: tuple[tuple[Silent, ...], ...]

    @property
    def plans(self) -> list[Silent]:
        """All sets of heads in it."""
        return [plan for draws in self.silent for plan in draws]


def curves_of(
    tracks: Sequence[Track],
    evaluated: Mapping[Silent, Evaluation],
    heads: int,
    reference: str,
    repair: str = NO_REPAIR,
    unrepaired: Mapping[Silent, Evaluation] | None = None,
) -> tuple[Curve, ...]:
    """Curves with their areas, all intervals paired over clips. `evaluated[()]` is the whole model.

    Differences of areas are taken to the track labelled `reference` in the same scope; and, where
    the sets of heads were also evaluated `unrepaired`, to the same track without the repair.
    """
    resampled = _resampled(evaluated)
    areas = _areas(tracks, evaluated, heads, resampled)
    bare = None if unrepaired is None else _areas(tracks, unrepaired, heads, _resampled(unrepaired))
    curves = []
    for track in tracks:
        value, spread = areas[track.label, track.scope]
        other, other_spread = areas[reference, track.scope]
        itself = track.label == reference
        difference = None if itself else _estimate(value - other, spread - other_spread)
        gain = None
        if bare is not None:
            bare_value, bare_spread = bare[track.label, track.scope]
            gain = _estimate(value - bare_value, spread - bare_spread)
        curves.append(
            _curve(track, evaluated, heads, resampled, repair).model_copy(
                update={
                    "area": _estimate(value, spread),
                    "to_reference": difference,
                    "to_unrepaired": gain,
                }
            )
        )
    return tuple(curves)


def points_of(
    tracks: Sequence[Track],
    evaluated: Mapping[Silent, Evaluation],
    heads: int,
    repair: str = NO_REPAIR,
) -> tuple[Curve, ...]:
    """The points alone, where they are too few for an area."""
    resampled = _resampled(evaluated)
    return tuple(_curve(track, evaluated, heads, resampled, repair) for track in tracks)


def _areas(
    tracks: Sequence[Track],
    evaluated: Mapping[Silent, Evaluation],
    heads: int,
    resampled: Resampled,
) -> dict[tuple[str, str], tuple[float, np.ndarray]]:
    """The area of each track by label and scope, and on every resample of the clips."""
    areas = {}
    for track in tracks:
        shares = [0.0, *(len(draws[0]) / heads for draws in track.silent)]
        values = [evaluated[()].value, *(_mean(draws, evaluated) for draws in track.silent)]
        on_resamples = [resampled(((),)), *(resampled(draws) for draws in track.silent)]
        areas[track.label, track.scope] = (
            float(area_under(shares, np.array(values))),
            area_under(shares, np.stack(on_resamples, axis=-1)),
        )
    return areas


Resampled = Callable[[Sequence[Silent]], np.ndarray]
"""The metric on every resample of the clips, mean over draws of heads."""


def _resampled(evaluated: Mapping[Silent, Evaluation]) -> Resampled:
    plans = {plan: number for number, plan in enumerate(evaluated)}
    one = next(iter(evaluated.values()))
    rates = resampled_error_rates([e.errors for e in evaluated.values()], one.counted)
    metric = 1 - rates if one.higher_is_better else rates

    def resampled(draws: Sequence[Silent]) -> np.ndarray:
        return np.asarray(metric[:, [plans[plan] for plan in draws]].mean(axis=1))

    return resampled


def _curve(
    track: Track,
    evaluated: Mapping[Silent, Evaluation],
    heads: int,
    resampled: Resampled,
    repair: str,
) -> Curve:
    points = []
    for fraction, draws in zip(track.fractions, track.silent, strict=True):
        values = [evaluated[plan].value for plan in draws]
        interval = (
            evaluated[draws[0]].interval
            if len(draws) == 1
            else Interval(*percentile_interval(resampled(draws)))
        )
        points.append(
            Point(
                fraction=fraction,
                removed=len(draws[0]),
                share=len(draws[0]) / heads,
                value=_mean(draws, evaluated),
                interval=interval,
                lowest=min(values),
                highest=max(values),
                heads={layer: tuple(own) for layer, own in heads_by_layer(draws[0]).items()},
            )
        )
    return Curve(
        label=track.label,
        scope=track.scope,
        repair=repair,
        metric=evaluated[()].metric,
        points=tuple(points),
        area=None,
        to_reference=None,
    )


def _mean(draws: Sequence[Silent], evaluated: Mapping[Silent, Evaluation]) -> float:
    return float(np.mean([evaluated[plan].value for plan in draws]))


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    return Estimate(value=value, interval=Interval(*percentile_interval(resampled)))
