"""The picture of two runs' scores against each other, head by head and layer by layer."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np

from hibprune.records.comparison import Correlation
from hibprune.report.figures import FAINT, INK, KEPT, TEXT_SIZE, dress, save

NAME_WIDTH = 36
"""Letters in a line beside an axis."""


def correlation_figure(correlation: Correlation, path: Path) -> None:
    """Draw a dot for every head, its layer by colour, and the rank correlation in every layer."""
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
    dress(by_layer, "Within each layer", "Spearman's rank correlation", "layer")
    by_layer.set_xticks(np.linspace(-1, 1, 5))
    save(figure, path)
