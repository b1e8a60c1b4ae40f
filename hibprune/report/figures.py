"""Pictures of a run: where the removed heads lie, how certain their scores are, what was gained."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hibprune.execution.files import write_via_temporary
from hibprune.records.units import Plan, Scores
from hibprune.records.variants import ORIGINAL, Variant
from hibprune.report.numbers import capitalised, milliseconds
from hibprune.report.ranking import ranking_finding
from hibprune.report.spread import cut_of, score_limits, spread_of
from hibprune.report.variants import latency_work
from hibprune.report.wording import ratio_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
TEXT_SIZE = 10
INK = "#22272e"
FAINT = "#8b929b"
GRID = "#e3e6ea"
KEPT = "#1f5f9e"
REMOVED = "#c2561a"


class HeadGrid(NamedTuple):
    """Layers as rows, heads as columns; NaN where there is no head."""

    scores: np.ndarray
    removed: np.ndarray


def head_grid(scores: Scores, plan: Plan) -> HeadGrid:
    """Lay mean scores and removals out by original layer and head."""
    values = scores.values
    places = {*values, *plan.removed, *plan.kept}
    shape = (max(h.layer for h in places) + 1, max(h.index for h in places) + 1)
    grid = HeadGrid(np.full(shape, np.nan), np.zeros(shape, dtype=bool))
    for head, value in values.items():
        grid.scores[head.layer, head.index] = value
    for head in plan.removed:
        grid.removed[head.layer, head.index] = True
    return grid


def head_map(scores: Scores, plan: Plan, path: Path, label: str = "mean score") -> None:
    """Draw the layer × head heat map with the removed heads crossed out.

    Scores that say nothing about which heads matter are said to, and not spread over all colours.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    grid = head_grid(scores, plan)
    layers, heads = grid.scores.shape
    cell_width, cell_height = min(0.42, 5.0 / heads), min(0.42, 8.6 / layers)
    width, height = cell_width * heads, cell_height * layers
    warning = _warning(scores, 58)
    left, right, above, below = 0.65, 0.85, 0.58, 1.45 + 0.17 * len(warning)
    body = max(width, 3.7)
    figure = Figure(figsize=(left + body + right, below + height + above))
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / total_width, below / total_height, width / total_width, height / total_height)
    )
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(grid.scores),
        cmap="viridis",
        edgecolors="white",
        linewidth=1.2 if min(cell_width, cell_height) > 0.25 else 0.5,
        norm=Normalize(*score_limits(scores)),
    )
    _cross_out(axes, grid.removed, min(cell_width, cell_height))
    _head_map_axes(axes, grid, cell_width, cell_height)
    bar = figure.add_axes(
        (left / total_width, (below - 0.65) / total_height, body / total_width, 0.13 / total_height)
    )
    colour_bar = figure.colorbar(mesh, cax=bar, orientation="horizontal")
    colour_bar.outline.set_visible(False)
    figure.text(
        left / total_width,
        0.12 / total_height,
        "\n".join(warning) if warning else "lighter: matters more",
        size=TEXT_SIZE - 1,
        color=REMOVED if warning else INK,
        va="bottom",
        linespacing=1.4,
    )
    figure.text(
        left / total_width,
        (below - 1.12) / total_height,
        label,
        size=TEXT_SIZE - 1,
        color=INK,
        va="bottom",
    )
    colour_bar.ax.tick_params(labelsize=TEXT_SIZE - 1, color=FAINT, labelcolor=INK)
    _legend_of_marks(figure, grid, left / total_width, 1 - 0.16 / total_height)
    save(figure, path)


def _warning(scores: Scores, width: int) -> list[str]:
    """In lines of so many letters, that scores say nothing; no line where they say something."""
    fault = scores.ranking_fault
    return [] if fault is None else textwrap.wrap(capitalised(ranking_finding(fault)), width)


def _cross_out(axes: Axes, removed: np.ndarray, cell_inches: float) -> None:
    """A cross, not a colour: it survives print and colour blindness, the score shows through."""
    from matplotlib.collections import LineCollection

    reach = 0.2
    strokes = []
    for layer, head in np.argwhere(removed):
        x, y = head + 0.5, layer + 0.5
        strokes.append([(x - reach, y - reach), (x + reach, y + reach)])
        strokes.append([(x - reach, y + reach), (x + reach, y - reach)])
    thickness = min(1.7, 5 * cell_inches)
    # The dark rim keeps the white cross visible on the light end of the colours.
    for colour, line_width in ((INK, 1.9 * thickness), ("white", thickness)):
        axes.add_collection(
            LineCollection(strokes, colors=colour, linewidths=line_width, capstyle="round")
        )


def _head_map_axes(axes: Axes, grid: HeadGrid, cell_width: float, cell_height: float) -> None:
    layers, heads = grid.scores.shape
    columns, rows = _ticks(heads, cell_width), _ticks(layers, cell_height)
    axes.set(xlim=(0, heads), ylim=(0, layers))
    axes.set_xticks([tick + 0.5 for tick in columns], [str(tick) for tick in columns])
    axes.set_yticks([tick + 0.5 for tick in rows], [str(tick) for tick in rows])
    axes.set_xlabel("head", size=TEXT_SIZE, color=INK)
    axes.set_ylabel("layer", size=TEXT_SIZE, color=INK)
    axes.tick_params(length=0, labelsize=TEXT_SIZE - 1, labelcolor=INK)
    axes.spines[:].set_visible(False)
    beside = heads + 0.12 / cell_width
    axes.text(beside, layers + 0.08 / cell_height, "kept", size=TEXT_SIZE - 1, color=INK)
    present = ~np.isnan(grid.scores)
    for layer in rows:
        there = int(present[layer].sum())
        kept = there - int(grid.removed[layer].sum())
        axes.text(
            beside,
            layer + 0.5,
            f"{kept} of {there}",
            size=TEXT_SIZE - 1,
            color=INK if kept else REMOVED,
            weight="normal" if kept else "bold",
            va="center",
        )


def _ticks(number: int, cell_inches: float) -> range:
    """Every label where two digits have room, otherwise every second, fifth or tenth."""
    steps = (step for step in (1, 2, 5, 10, 20) if step * cell_inches >= 0.17)
    return range(0, number, next(steps, 50))


def _legend_of_marks(figure: Figure, grid: HeadGrid, x: float, y: float) -> None:
    blank = "blank: no head    " if np.isnan(grid.scores).any() else ""
    explanation = f"× removed    {blank}layer 0 is nearest the input"
    figure.text(x, y, explanation, size=TEXT_SIZE - 1, color=INK, va="center")


def score_spread(
    scores: Scores, plan: Plan, path: Path, label: str = "mean score", with_cut: bool = True
) -> None:
    """Draw every head's score with its standard error, sorted, the removed ones marked.

    Scores of several rounds are not of one model: a cut between them would mean nothing.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    spread = spread_of(scores, plan)
    figure = Figure(figsize=(7, 3.1), layout="constrained")
    axes = figure.add_subplot()
    rank = np.arange(1, len(spread.means) + 1)
    size = float(np.clip(500 / len(rank), 2.0, 5.0))
    for part, colour, marker, name in (
        (spread.removed, REMOVED, "x", "removed"),
        (~spread.removed, KEPT, "o", "kept"),
    ):
        if part.any():
            axes.plot(
                rank[part],
                spread.means[part],
                marker,
                color=colour,
                markersize=size,
                markeredgewidth=1.3,
                label=name,
            )
            if spread.errors is not None:
                low, high = (spread.means + sign * spread.errors for sign in (-1, 1))
                axes.vlines(rank[part], low[part], high[part], color=colour, linewidth=0.9)
    cut = cut_of(spread) if with_cut else None
    if cut is not None:
        axes.axhline(cut, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="cut")
    axes.set_xlabel("heads, from the lowest score to the highest", size=TEXT_SIZE, color=INK)
    # Above, not beside: a long label is wider than the picture is high.
    bars = "" if spread.errors is None else "; bars: ± 1 standard error"
    warning = _warning(scores, 95)
    axes.set_title(
        "\n".join([f"{label}{bars}", *warning]),
        loc="left",
        size=TEXT_SIZE,
        color=REMOVED if warning else INK,
    )
    if warning:
        low, high = score_limits(scores)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    axes.set_xlim(0, len(rank) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)
    axes.legend(frameon=False, fontsize=TEXT_SIZE - 1, loc="upper left", labelcolor=INK)
    save(figure, path)


def latency_figure(variants: Sequence[Variant], path: Path) -> None:
    """Draw median times of all variants at every length, each length on a scale of its own."""
    from matplotlib.figure import Figure

    lengths = range(len(variants[0].latency))
    height = 0.45 + len(lengths) * (0.45 + 0.36 * len(variants))
    figure = Figure(figsize=(7, height), layout="constrained")
    all_axes = figure.subplots(len(lengths), 1, squeeze=False)[:, 0]
    for axes, place in zip(all_axes, lengths, strict=True):
        _latency_panel(axes, variants, place)
    figure.supxlabel(
        "Bar: median; whisker: to the 90th percentile; in parentheses: 95 % interval of the "
        "speed-up.",
        x=0.01,
        ha="left",
        size=TEXT_SIZE - 1,
        color=INK,
    )
    save(figure, path)


def _latency_panel(axes: Axes, variants: Sequence[Variant], place: int) -> None:
    """Bars start at zero, so that their lengths compare as the times do."""
    longest = max(one.latency[place].times.p90 for one in variants)
    for row, variant in enumerate(variants):
        y, one = len(variants) - 1 - row, variant.latency[place]
        times = one.times
        axes.barh(y, times.p50, height=0.62, color=FAINT if variant.is_rival else KEPT)
        axes.plot([times.p50, times.p90], [y, y], color=INK, linewidth=1.1)
        axes.plot([times.p90] * 2, [y - 0.16, y + 0.16], color=INK, linewidth=1.1)
        told = milliseconds(times.p50)
        if variant.name != ORIGINAL:
            told += f"  {one.ratio:.2f}× ({ratio_interval(one)})"
        axes.text(
            times.p90 + 0.015 * longest, y, told, ha="left", va="center", size=TEXT_SIZE, color=INK
        )
    names = [variant.name for variant in variants]
    axes.set_yticks(range(len(names) - 1, -1, -1), names)
    axes.set(xlim=(0, 1.45 * longest), ylim=(-0.55, len(variants) - 0.45), xticks=[])
    axes.tick_params(length=0, labelsize=TEXT_SIZE, labelcolor=INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    heading = latency_work(variants[0].latency[place])
    axes.set_title(heading, loc="left", size=TEXT_SIZE, color=INK)


def dress(axes: Axes, title: str, across: str, up: str) -> None:
    """Give a plot its title, the names of its axes and a faint grid."""
    axes.set_title(title, loc="left", size=TEXT_SIZE, color=INK)
    axes.set_xlabel(across, size=TEXT_SIZE, color=INK)
    axes.set_ylabel(up, size=TEXT_SIZE, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)


def save(figure: Figure, path: Path) -> None:
    """Write a picture, PNG or SVG by its suffix; the same picture always gives the same bytes."""
    import matplotlib

    # Stamps of version, date and chance would make every run's bytes its own.
    stamp = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "hibprune"}):
        write_via_temporary(
            path,
            lambda temporary: figure.savefig(
                temporary, dpi=DOTS_PER_INCH, facecolor="white", metadata=stamp
            ),
        )
