"""The picture of two runs' scores against each other, head by head and layer by layer."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from hibprune.records.comparison import Correlation, CorrelationMatrix
from hibprune.records.ranking import scores_equal
from hibprune.report.figures import FAINT, INK, KEPT, REMOVED, TEXT_SIZE, dress, save
from hibprune.report.numbers import listing
from hibprune.report.ranking import ranking_finding
from hibprune.report.spread import wide_enough

DRAWN = "random"
"""The method that draws its scores."""
NAME_WIDTH, WARNING_WIDTH = 36, 110
"""Letters in a line beside an axis, and in one over the whole picture."""


def empty_rankings(correlation: Correlation) -> list[str]:
    """A line for each run whose scores say nothing: what they are correlated with is chance."""
    runs = (correlation.first, correlation.second)
    lines = [
        f"{run.label}: {ranking_finding(run.ranking_fault)}"
        for run in runs
        if run.ranking_fault is not None
    ]
    drawn = [run for run in runs if run.method == DRAWN]
    if len(drawn) == 2 and drawn[0].scores == drawn[1].scores:
        both = listing(list(dict.fromkeys(run.label for run in drawn)))
        return [*lines, f"{both}: these scores are draws of one seed and say nothing about heads"]
    told = (f"{run.label}: these scores are drawn and say nothing about heads" for run in drawn)
    return list(dict.fromkeys((*lines, *told)))


def correlation_figure(correlation: Correlation, path: Path) -> None:
    """Draw a dot for every head, its layer by colour, and the rank correlation in every layer.

    Scores that are equal but for rounding are drawn as equal.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = correlation.layers
    figure = Figure(figsize=(8.2, 4.2), layout="constrained")
    heads, by_layer = figure.subplots(1, 2, width_ratios=(1.25, 1))
    dots = heads.scatter(
        correlation.first.scores,
        correlation.second.scores,
        c=[head.layer for head in correlation.heads],
        cmap="viridis",
        s=34,
        edgecolors="white",
        linewidths=0.6,
    )
    bar = figure.colorbar(dots, ax=heads, pad=0.02, aspect=30)
    bar.set_label("layer, 0 nearest the input", size=TEXT_SIZE - 1, color=INK)
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar.ax.tick_params(labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)
    for scores, set_limits in (
        (correlation.first.scores, heads.set_xlim),
        (correlation.second.scores, heads.set_ylim),
    ):
        if scores_equal(scores):
            set_limits(*wide_enough(min(scores), max(scores)))
    if empty := empty_rankings(correlation):
        lines = [line for told in empty for line in textwrap.wrap(told, WARNING_WIDTH)]
        figure.suptitle(
            "\n".join(lines), x=0.02, ha="left", size=TEXT_SIZE, color=REMOVED, linespacing=1.3
        )
    # Scores that are close together have long numbers.
    heads.xaxis.set_major_locator(MaxNLocator(nbins=4))
    low, high = correlation.spearman.interval
    dress(
        heads,
        f"Spearman {correlation.spearman.value:.2f} ({low:.2f} to {high:.2f}), "
        f"{len(correlation.heads)} heads",
        textwrap.fill(f"score: {correlation.first.label}", NAME_WIDTH),
        textwrap.fill(f"score: {correlation.second.label}", NAME_WIDTH),
    )
    by_layer.axvline(0, color=FAINT, linewidth=1)
    by_layer.hlines(list(layers), 0, list(layers.values()), color=KEPT, linewidth=1.6)
    by_layer.plot(list(layers.values()), list(layers), "o", color=KEPT, markersize=6)
    by_layer.set_xlim(-1.08, 1.08)
    by_layer.set_ylim(-0.6, max(layers, default=0) + 0.6)
    by_layer.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
    if not layers:
        by_layer.set_yticks([])
    dress(by_layer, "Within each layer", "Spearman's rank correlation", "layer")
    by_layer.set_xticks(np.linspace(-1, 1, 5))
    save(figure, path)


def matrix_figure(matrix: CorrelationMatrix, path: Path) -> None:
    """Draw the rank correlation of each two runs, with its interval, as a matrix of colours."""
    from matplotlib.figure import Figure

    labels = [textwrap.fill(run.label, NAME_WIDTH // 2) for run in matrix.runs]
    number = len(labels)
    values = np.eye(number)
    told = {}
    for (one, other), pair in zip(matrix.pairs, matrix.correlations, strict=True):
        values[one, other] = values[other, one] = pair.spearman.value
        low, high = pair.spearman.interval
        told[other, one] = f"{low:.2f}\nto {high:.2f}"
        told[one, other] = f"{pair.spearman.value:.2f}"
    side = 0.85 * number
    figure = Figure(figsize=(side + 3.4, side + 1.9), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    bar = figure.colorbar(image, ax=axes, pad=0.02, shrink=0.8)
    bar.set_label("Spearman's rank correlation", size=TEXT_SIZE - 1, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TEXT_SIZE - 1, labelcolor=INK, color=FAINT)
    for (row, column), text in told.items():
        light = abs(values[row, column]) > 0.6
        axes.text(
            column, row, text, ha="center", va="center",
            size=TEXT_SIZE if column > row else TEXT_SIZE - 2, color="white" if light else INK,
        )  # fmt: skip
    axes.set_xticks(range(number), labels, rotation=90)
    axes.set_yticks(range(number), labels)
    axes.tick_params(length=0, labelsize=TEXT_SIZE - 1, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(
        "Above: correlation; below: its 95 % interval", loc="left", size=TEXT_SIZE, color=INK
    )
    save(figure, path)
