"""Tables of a comparison: areas under the curves and the curves themselves, rankings by repairs."""

from __future__ import annotations

from collections.abc import Sequence

from hibprune.records.comparison import Comparison, Curve, Estimate, Point
from hibprune.report.markdown import plain, table
from hibprune.report.numbers import metric_decimals, percent, points
from hibprune.report.wording import percent_interval


def areas_table(comparison: Comparison, curves: Sequence[Curve]) -> str:
    """Areas of every method, best first; with a repair's name where there was any."""
    n, sign = comparison.validation.n, -1 if comparison.higher_is_better else 1
    bare = any(curve.to_unrepaired is not None for curve in curves)
    rows = []
    for curve in sorted(curves, key=lambda curve: sign * area(curve).value):
        cells = [
            *_names(comparison, curve),
            estimate(area(curve), n),
            _difference(curve.to_reference, n),
            finding(comparison, curve),
        ]
        rows.append([*cells, _difference(curve.to_unrepaired, n)] if bare else cells)
    header = [*_name_columns(comparison, "method"), "area under the curve"]
    header += [f"against {plain(comparison.reference)}", "finding"]
    header += ["against no repair"] if bare else []
    return table("l" * len(_name_columns(comparison, "")) + "rrl" + "r" * bare, header, rows)


def values_table(comparison: Comparison, curves: Sequence[Curve]) -> str:
    """The curves, a column for each share; several draws with their range.

    A method's repairs stand below one another.
    """
    n = comparison.validation.n
    columns = {point.removed: point.share for curve in curves for point in curve.points}
    names = _name_columns(comparison, "share removed")
    header = [*names, *(percent(columns[removed], 0) for removed in sorted(columns))]
    blank = [""] * (len(names) - 1)
    rows: list[Sequence[object]] = [["heads removed", *blank, *map(str, sorted(columns))]]
    labels = [method.label for method in comparison.methods]
    kinds = [repair.kind for repair in comparison.repairs]
    for curve in sorted(curves, key=lambda c: (labels.index(c.label), kinds.index(c.repair))):
        at = {point.removed: point for point in curve.points}
        heights = [_height(at[removed], n) for removed in sorted(columns)]
        rows.append([*_names(comparison, curve), *heights])
    return table("l" * len(names) + "r" * len(columns), header, rows)


def _name_columns(comparison: Comparison, first: str) -> list[str]:
    return [first, "repair"] if comparison.repaired else [first]


def _names(comparison: Comparison, curve: Curve) -> list[str]:
    return [curve.label, curve.repair] if comparison.repaired else [curve.label]


def _height(point: Point, n: int) -> str:
    value = percent(point.value, metric_decimals(n))
    if point.lowest == point.highest:
        return value
    decimals = metric_decimals(n)
    return f"{value} [{100 * point.lowest:.{decimals}f} to {100 * point.highest:.{decimals}f}]"


def finding(comparison: Comparison, curve: Curve) -> str:
    """Whether a method's area differs from the reference's by more than chance of the clips."""
    difference = curve.to_reference
    if difference is None:
        return "the reference"
    low, high = difference.interval
    if low == high == 0:
        return "the same"
    if low <= 0 <= high:
        return "within the noise"
    return "better" if (low > 0) == comparison.higher_is_better else "worse"


def area(curve: Curve) -> Estimate:
    """The area under a curve, which all have but those of a few points."""
    assert curve.area is not None
    return curve.area


def estimate(value: Estimate, n: int) -> str:
    """A value with its interval, in percent."""
    shown = percent(value.value, metric_decimals(n))
    return f"{shown} ({percent_interval(value.interval, n)})"


def _difference(difference: Estimate | None, n: int) -> str:
    """In points, with its interval; empty where there is nothing to differ from."""
    if difference is None:
        return ""
    low, high = (points(side, n).removesuffix(" points") for side in difference.interval)
    return f"{points(difference.value, n)} ({low} to {high})"
