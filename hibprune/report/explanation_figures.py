"""Pictures of an explanation: maps of heads over the clip they are of, and what all heads do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hibprune.records.explanation import (
    Axis,
    ClipMaps,
    ExplainedClip,
    HeadFunctions,
    HeadMap,
    Spectrogram,
    Stacks,
)
from hibprune.report.figures import FAINT, INK, TEXT_SIZE, dress, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "positional": "#c2561a",
    "rare tokens": "#8a5fb4",
    "global": "#8b929b",
    "vertical": "#2b8a5e",
    "diagonal": "#1f5f9e",
    "other": "#b9c0c8",
}
"""By function."""
VIEWS = (
    ("own", "own attention"),
    ("softmax", "learnt (HIB, softmax)"),
    ("sigmoid", "learnt (HIB, sigmoid)"),
    ("attribution", "attribution (AttAttr)"),
)
SMALL = TEXT_SIZE - 2
MOST_LABELS = 40
"""Tokens named along an axis; of a longer text every second one, and so on."""
HEADS_IN_A_PICTURE = 6
NAMES = {
    "encoder": "encoder self-attention",
    "decoder.self": "decoder self-attention",
    "decoder.cross": "decoder to encoder",
}

STACK_COLOURS = {"encoder": "#1f5f9e", "decoder.self": "#c2561a", "decoder.cross": "#2b8a5e"}


def maps_figure(clip: ExplainedClip, heads: Sequence[HeadMap], path: Path) -> None:
    """Draw the views of some heads, a row for each, over the clip's spectrogram and words."""
    from matplotlib.figure import Figure

    axis = clip.axis
    sound = clip.spectrogram is not None
    longest = max((len(token) for token in axis.tokens), default=0)
    side = 2.2 if len(axis.tokens) < 24 else 2.9
    below = 1.15 if sound else 0.5 + 0.065 * min(longest, 16)
    beside = 0.75 if sound or not axis.tokens else 0.35 + 0.065 * min(longest, 16)
    width = beside + len(VIEWS) * (side + 0.75)
    height = 0.45 + len(heads) * (side + 0.35) + below
    figure = Figure(figsize=(width, height))
    for row, head in enumerate(heads):
        for column, (view, title) in enumerate(VIEWS):
            place = (
                (beside + column * (side + 0.75)) / width,
                1 - (0.45 + row * (side + 0.35) + side) / height,
                side / width,
                side / height,
            )
            axes = figure.add_axes(place)
            _map(figure, axes, np.array(getattr(head, view)), axis, side)
            axes.tick_params(labelbottom=row == len(heads) - 1 and not sound)
            axes.tick_params(labelleft=column == 0)
            if row == 0:
                axes.set_title(title, size=TEXT_SIZE, color=INK, loc="left", pad=16)
            told = f"head {head.head.layer}.{head.head.index}"
            if view == "softmax":
                told = f"r with own: {head.similarity:.2f}"
            if view == "attribution":
                told = f"largest: {head.largest:.2g}"
            if view in ("own", "softmax", "attribution"):
                axes.text(
                    0, 1.02, told, size=SMALL, color=INK, transform=axes.transAxes, va="bottom"
                )
            if column == 0:
                axes.set_ylabel("query, s" if sound else "query", size=SMALL, color=INK)
            if row == len(heads) - 1 and not sound:
                axes.set_xlabel("key", size=SMALL, color=INK)
            if row == len(heads) - 1 and clip.spectrogram is not None:
                strip = (place[0], place[1] - 0.68 / height, place[2], 0.5 / height)
                _strip(figure.add_axes(strip), clip.spectrogram, axis, column == 0)
    save(figure, path)


def _map(figure: Figure, axes: Axes, matrix: np.ndarray, axis: Axis, side: float) -> None:
    """One matrix with its colour bar; blue below and red above 0 where it has both."""
    signed = float(matrix.min()) < 0
    reach = float(np.abs(matrix).max()) or 1.0
    end = axis.seconds if axis.seconds is not None else float(axis.positions)
    image = axes.imshow(
        matrix,
        origin="upper",
        extent=(0, end, end, 0),
        cmap="RdBu_r" if signed else "viridis",
        vmin=-reach if signed else 0,
        vmax=reach,
        interpolation="nearest",
        aspect="auto",
    )
    box = axes.get_position()
    width, _height = figure.get_size_inches()
    bar = figure.add_axes((box.x1 + 0.06 / width, box.y0, 0.08 / width, box.height))
    colours = figure.colorbar(image, cax=bar)
    colours.outline.set_visible(False)
    colours.ax.tick_params(labelsize=SMALL - 1, labelcolor=INK, color=FAINT, length=2, pad=1)
    colours.ax.locator_params(nbins=4)
    colours.ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    colours.ax.yaxis.get_offset_text().set_fontsize(SMALL - 1)
    if axis.tokens:
        step = -(-len(axis.tokens) // min(MOST_LABELS, int(side * 9)))
        places = [place + 0.5 for place in range(0, len(axis.tokens), step)]
        names = [_short(token) for token in axis.tokens[::step]]
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
    axes.tick_params(labelsize=SMALL, labelcolor=INK, color=FAINT, length=2)
    axes.spines[:].set_visible(False)


def _short(token: str) -> str:
    return token if len(token) <= 16 else f"{token[:15]}…"


def _strip(axes: Axes, heard: Spectrogram, axis: Axis, first: bool) -> None:
    """The spectrogram under a map, with the words where they are said."""
    assert axis.seconds is not None
    axes.imshow(
        np.array(heard.decibels),
        origin="lower",
        extent=(0, axis.seconds, 0, heard.highest_hertz / 1000),
        aspect="auto",
        cmap="Greys",
    )
    axes.set_xlabel("key, s", size=SMALL, color=INK)
    axes.set_yticks([0, heard.highest_hertz / 1000])
    axes.tick_params(labelsize=SMALL, labelcolor=INK, color=FAINT, length=2, labelleft=first)
    if first:
        axes.set_ylabel("kHz", size=SMALL, color=INK, labelpad=2)
    axes.spines[:].set_visible(False)
    each = 0.075 * axis.seconds / 2.2
    free = -1.0
    for word in axis.words:
        scale = axis.seconds / axis.positions
        middle = (word.start + word.end) / 2 * scale
        axes.axvspan(word.start * scale, word.end * scale, color="#1f5f9e", alpha=0.13, linewidth=0)
        # A word that has no room beside the one before it is marked, not named.
        if middle - each * len(word.text) / 2 >= free:
            axes.text(
                middle, 1.04, word.text, size=SMALL - 1, color=INK, ha="center", va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            free = middle + each * len(word.text) / 2


def functions_figure(functions: HeadFunctions, path: Path) -> None:
    """Draw layers as rows and heads as columns: colour by function, size by score."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    heads = functions.heads
    layers = max(one.head.layer for one in heads) + 1
    widest = max(one.head.index for one in heads) + 1
    cell = min(0.42, 6.0 / widest, 8.6 / layers)
    body = max(cell * widest, 3.2)
    figure = Figure(figsize=(body + 2.3, cell * layers + 1.15))
    width, height = figure.get_size_inches()
    axes = figure.add_axes(
        (0.6 / width, 0.65 / height, cell * widest / width, cell * layers / height)
    )
    scores = np.array([np.nan if one.score is None else one.score for one in heads])
    scored = bool(np.isfinite(scores).all()) and float(np.ptp(scores)) > 0
    shares = (scores - scores.min()) / np.ptp(scores) if scored else np.full(len(heads), 0.6)
    full = (cell * 72 * 0.9) ** 2
    axes.scatter(
        [one.head.index for one in heads],
        [one.head.layer for one in heads],
        s=full * (0.08 + 0.92 * shares),
        c=[COLOURS[one.function] for one in heads],
        linewidths=0,
        marker="s",
    )
    axes.set(xlim=(-0.5, widest - 0.5), ylim=(-0.5, layers - 0.5))
    axes.set_xlabel("head", size=TEXT_SIZE, color=INK)
    axes.set_ylabel("layer", size=TEXT_SIZE, color=INK)
    step = next(one for one in (1, 2, 5, 10, 20, 50) if one * cell >= 0.2 or one == 50)
    axes.set_xticks(range(0, widest, step))
    axes.set_yticks(range(0, layers, step))
    axes.tick_params(length=0, labelsize=TEXT_SIZE - 1, labelcolor=INK)
    axes.spines[:].set_color("#e3e6ea")
    shown = [name for name in COLOURS if any(one.function == name for one in heads)]
    marks = [
        Line2D([], [], marker="s", linestyle="", color=COLOURS[name], markersize=8, label=name)
        for name in shown
    ]
    axes.legend(
        handles=marks, loc="upper left", bbox_to_anchor=(1.0, 1.03), frameon=False,
        fontsize=TEXT_SIZE - 1, labelcolor=INK,
    )  # fmt: skip
    told = f"size: {functions.method} score"
    if not scored:
        told = "without scores" if functions.method is None else "all scores are equal"
    figure.text(0.6 / width, 1 - 0.25 / height, told, size=TEXT_SIZE - 1, color=INK)
    save(figure, path)


def stacks_figure(found: Stacks, path: Path) -> None:
    """Draw the metric over the share of each stack's heads that is gone, with its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for curve in found.curves:
        shares = [0.0, *(100 * point.removed / curve.heads for point in curve.points)]
        estimates = [found.whole, *(point.value for point in curve.points)]
        values = [100 * one.value for one in estimates]
        repaired = curve.repair != "none"
        told = f"{NAMES[curve.stack]} ({curve.heads} heads{', repaired' if repaired else ''})"
        axes.plot(
            shares, values, color=STACK_COLOURS[curve.stack], marker="o", markersize=4,
            linewidth=1.5, linestyle="dashed" if repaired else "solid", label=told,
        )  # fmt: skip
        axes.vlines(
            shares, [100 * one.interval.low for one in estimates],
            [100 * one.interval.high for one in estimates], color=STACK_COLOURS[curve.stack],
            linewidth=0.8,
        )  # fmt: skip
    aim = "higher" if found.higher_is_better else "lower"
    dress(
        axes,
        "Heads of one stack gone, the lowest scores first",
        "heads of the stack gone, %",
        f"{found.metric}, % ({aim} is better)",
    )
    axes.legend(
        frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    save(figure, path)


def pictures_of(maps: ClipMaps) -> list[tuple[HeadMap, ...]]:
    """The heads of a clip as they are drawn together."""
    return [
        maps.heads[start : start + HEADS_IN_A_PICTURE]
        for start in range(0, len(maps.heads), HEADS_IN_A_PICTURE)
    ]
