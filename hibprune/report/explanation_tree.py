"""The picture of an attribution tree: words along the bottom, what they are gathered to above."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hibprune.records.explanation import AttributionTree
from hibprune.report.figures import FAINT, GRID, INK, KEPT, TEXT_SIZE, save

MOST_NAMES = 80
"""Drawn; of a longer text, those that are in the tree and the first others."""
LONGEST_NAME = 18


def levels(tree: AttributionTree) -> dict[int, float]:
    """The height of every node: the top above the last layer, a child at the layer of its edge."""
    found = {tree.top: float(tree.layers)}
    for edge in tree.edges:
        found[edge.child] = float(edge.layer)
    return found


def tree_figure(tree: AttributionTree, path: Path) -> None:
    """Draw the edges from the top down; words that are in no edge are grey."""
    from matplotlib.figure import Figure

    height_of = levels(tree)
    shown = _shown(tree, height_of)
    column = {place: number for number, place in enumerate(shown)}
    longest = min(LONGEST_NAME, max(len(tree.names[place]) for place in shown))
    width = float(np.clip(1.2 + 0.34 * len(shown), 4.5, 14))
    body = float(np.clip(0.33 * (tree.layers + 1), 1.6, 5.5))
    below = 0.3 + 0.085 * longest
    figure = Figure(figsize=(width, body + below + 0.25))
    _, total = figure.get_size_inches()
    axes = figure.add_axes((0.75 / width, below / total, (width - 0.95) / width, body / total))
    largest = max((edge.weight for edge in tree.edges), default=1.0)
    for place in height_of:
        axes.plot([column[place]] * 2, [-0.9, height_of[place]], color=GRID, linewidth=1, zorder=1)
    for edge in tree.edges:
        start, end = edge.parent, edge.child
        axes.annotate(
            "",
            xy=(column[end], height_of[end]),
            xytext=(column[start], height_of[start]),
            arrowprops={
                "arrowstyle": "-|>",
                "color": KEPT,
                "linewidth": 0.7 + 1.8 * edge.weight / largest,
                "shrinkA": 4,
                "shrinkB": 4,
            },
        )
    axes.scatter(
        [column[place] for place in height_of],
        list(height_of.values()),
        s=34,
        color=[INK if place == tree.top else KEPT for place in height_of],
        zorder=3,
    )
    names = [tree.names[place] for place in shown]
    cut = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in names]
    axes.set_xticks(range(len(shown)), cut, rotation=90, size=TEXT_SIZE - 1)
    for label, place in zip(axes.get_xticklabels(), shown, strict=True):
        label.set_color(INK if place in height_of else FAINT)
    axes.set(xlim=(-0.7, len(shown) - 0.3), ylim=(-0.9, tree.layers + 0.6))
    axes.set_yticks([*range(tree.layers), tree.layers], [*map(str, range(tree.layers)), "top"])
    axes.set_ylabel("layer", size=TEXT_SIZE, color=INK)
    axes.tick_params(length=0, labelsize=TEXT_SIZE - 1)
    axes.spines[:].set_visible(False)
    save(figure, path)


def _shown(tree: AttributionTree, height_of: dict[int, float]) -> list[int]:
    """The places of the words that are drawn, in their order."""
    others = [
        place
        for place in range(len(tree.names))
        if place not in height_of and place != tree.terminal
    ]
    room = max(0, MOST_NAMES - len(height_of))
    return sorted([*height_of, *others[:room]])
