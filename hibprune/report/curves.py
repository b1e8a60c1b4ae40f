"""Pictures of a comparison: the metric over the share of heads removed, one curve per method.

Several repairs have a panel each, one below the other and of one scale.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hibprune.records.comparison import Comparison, Curve, Estimate
from hibprune.report.figures import FAINT, GRID, INK, TEXT_SIZE, dress, save
from hibprune.report.numbers import capitalised
from hibprune.report.repair import repair_name
from hibprune.report.wording import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B08000", "#7A3E9D", "#444444")
"""Okabe and Ito's, which stay apart for every kind of colour vision, two of them darkened."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES = ("-", (0, (5, 1.6)))
WHERE = {"global": "over the whole model", "layerwise": "the same share of every layer"}
LABEL_WIDTH = 30
"""Letters in a line of a label beside the curves."""
LEAST_RANGE = 0.05
"""Of the metric, from the bottom of a picture to its top."""


class Style(NamedTuple):
    """How a method is drawn, the same in every picture of a comparison."""

    colour: str
    marker: str
    dashes: object
    width: float


def style_of(comparison: Comparison, label: str) -> Style:
    """The style of a method: the reference is drawn boldest, drawn scores are grey."""
    drawn = {method.label for method in comparison.methods if method.drawn}
    if label in drawn:
        return Style(FAINT, "", (0, (2, 1.5)), 1.6)
    labels = [method.label for method in comparison.methods if method.label not in drawn]
    place = labels.index(label)
    return Style(
        COLOURS[place % len(COLOURS)],
        MARKERS[place % len(MARKERS)],
        DASHES[place // len(COLOURS) % len(DASHES)],
        2.6 if label == comparison.reference else 1.5,
    )


def curve_figure(comparison: Comparison, scope: str, path: Path) -> None:
    """Draw the metric against the share of heads removed; drawn scores as a band over draws.

    Repairs have a panel each.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    curves = comparison.of_scope(scope)
    whole = comparison.whole[comparison.metric]
    names = _names(comparison)
    lines = sum(len(names[curve.label]) for curve in curves)
    panel = max(4.4, 0.9 + 0.235 * lines / len(comparison.repairs))
    height = panel * len(comparison.repairs)
    figure = Figure(figsize=(8.2, height))
    limits = _range(curves, whole)
    metric = metric_name(comparison.metric)
    aim = "higher" if comparison.higher_is_better else "lower"
    for number, repair in enumerate(reversed(comparison.repairs)):
        own = [curve for curve in curves if curve.repair == repair.kind]
        # In inches: what is below the axes, where they begin, and how high they are.
        below = 0.78
        inside = 0.93 * panel - below
        bottom = number * panel + below
        axes = figure.add_axes((0.085, bottom / height, 0.60, inside / height))
        shares = sorted({point.share for curve in own for point in curve.points})
        axes.axhspan(*whole.interval, color=GRID, alpha=0.6, linewidth=0, zorder=0)
        for curve in own:
            _draw(axes, comparison, curve, whole)
        _name_at_the_end(axes, inside, limits, comparison, own, names)
        axes.set_xlim(0, shares[-1])
        axes.set_ylim(*limits)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        told = f", {repair_name(repair)}" if comparison.repaired else ""
        dress(
            axes,
            f"{capitalised(metric)} on {comparison.validation.n} clips ({aim} is better){told}",
            f"attention heads removed, {WHERE[scope]}",
            "",
        )
    drawn = [method.label for method in comparison.methods if method.drawn]
    band = f"    grey band: {drawn[0]}, from the lowest to the highest draw" if drawn else ""
    figure.text(
        0.085,
        0.02 * panel / height,
        f"light strip: 95 % interval with no head removed{band}",
        size=TEXT_SIZE - 2,
        color=INK,
    )
    save(figure, path)


def _names(comparison: Comparison) -> dict[str, list[str]]:
    """The lines of each method's name, with a remark where its ranking says nothing."""
    return {
        method.label: [
            *textwrap.wrap(method.label, LABEL_WIDTH),
            *(["(ranking says nothing)"] if method.ranking_fault is not None else []),
        ]
        for method in comparison.methods
    }


def _draw(axes: Axes, comparison: Comparison, curve: Curve, whole: Estimate) -> None:
    style = style_of(comparison, curve.label)
    shares = [0.0, *(point.share for point in curve.points)]
    lowest, highest = (
        [whole.value, *(getattr(point, side) for point in curve.points)]
        for side in ("lowest", "highest")
    )
    if lowest != highest:
        axes.fill_between(
            shares, lowest, highest, color=style.colour, alpha=0.22, linewidth=0, zorder=1
        )
    axes.plot(
        shares,
        [whole.value, *(point.value for point in curve.points)],
        color=style.colour,
        linestyle=style.dashes,
        linewidth=style.width,
        marker=style.marker or None,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        # Beneath the others, which would vanish behind its broad line.
        zorder=2 if curve.label == comparison.reference else 3,
        clip_on=False,
    )


def _range(curves: Sequence[Curve], whole: Estimate) -> tuple[float, float]:
    heights = [whole.interval.low, whole.interval.high]
    heights += [side for c in curves for p in c.points for side in (p.lowest, p.highest)]
    low, high = min(heights), max(heights)
    # Curves that hardly differ are not to fill the picture.
    margin = max(0.04 * (high - low), (LEAST_RANGE - (high - low)) / 2)
    return low - margin, high + margin


def _name_at_the_end(
    axes: Axes,
    height: float,
    limits: tuple[float, float],
    comparison: Comparison,
    curves: Sequence[Curve],
    names: dict[str, list[str]],
) -> None:
    """Write each method's name beside the end of its curve, moved so that none covers another.

    `height` is that of the axes, in inches; `limits` are the lowest and highest value in it.
    """
    low, high = limits
    line = 0.165 / height
    ordered = sorted(curves, key=lambda curve: curve.points[-1].value)
    ends = [(curve.points[-1].value - low) / (high - low) for curve in ordered]
    heights = [line * (len(names[curve.label]) + 0.35) for curve in ordered]
    for curve, end, place in zip(ordered, ends, spread(ends, heights), strict=True):
        style = style_of(comparison, curve.label)
        axes.plot(
            [1.0, 1.035, 1.05],
            [end, place, place],
            transform=axes.transAxes,
            color=style.colour,
            linewidth=0.7,
            clip_on=False,
        )
        axes.plot(
            [1.058, 1.095],
            [place, place],
            transform=axes.transAxes,
            color=style.colour,
            linewidth=style.width,
            linestyle=style.dashes,
            clip_on=False,
        )
        if style.marker:
            axes.plot(
                [1.0765],
                [place],
                transform=axes.transAxes,
                color=style.colour,
                marker=style.marker,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                clip_on=False,
            )
        axes.text(
            1.105,
            place,
            "\n".join(names[curve.label]),
            transform=axes.transAxes,
            size=TEXT_SIZE - 1,
            color=INK,
            va="center",
            linespacing=1.1,
            weight="bold" if curve.label == comparison.reference else "normal",
        )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Centres near the wanted ones (rising), of extents that do not overlap and lie within 0–1.

    Those that touch form a block, whose centre is the mean of what its members want.
    """
    blocks: list[list[int]] = []
    for number in range(len(wanted)):
        blocks.append([number])
        while len(blocks) > 1 and _overlap(blocks[-2], blocks[-1], wanted, heights):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = []
    for block in blocks:
        edge = _bottom(block, wanted, heights)
        for member in block:
            places.append(edge + heights[member] / 2)
            edge += heights[member]
    return places


def _overlap(
    lower: list[int], upper: list[int], wanted: Sequence[float], heights: Sequence[float]
) -> bool:
    top = _bottom(lower, wanted, heights) + sum(heights[i] for i in lower)
    return top > _bottom(upper, wanted, heights)


def _bottom(block: list[int], wanted: Sequence[float], heights: Sequence[float]) -> float:
    """Where a block begins so that its members are off by nothing on average."""
    below, bottoms = 0.0, []
    for member in block:
        bottoms.append(wanted[member] - heights[member] / 2 - below)
        below += heights[member]
    return float(np.clip(np.mean(bottoms), 0, max(0.0, 1 - below)))
