"""Pictures of what inputs are worth: one input by several methods, and the degradation test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hibprune.records.explanation import Degradation, ExplainedClip, InputAttribution
from hibprune.report.figures import FAINT, INK, TEXT_SIZE, dress, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = TEXT_SIZE - 2
MOST_TOKENS = 60
"""Named under a text."""
COLOURS = {"integrated gradients": "#c2561a", "occlusion": "#2b8a5e", "random": "#8b929b"}


def inputs_figure(clip: ExplainedClip, found: InputAttribution, path: Path) -> None:
    """Draw a strip of colour for each method over the spectrogram and words, or the tokens."""
    from matplotlib.figure import Figure

    sound = clip.spectrogram is not None
    longest = max((len(token) for token in clip.axis.tokens[:MOST_TOKENS]), default=0)
    rows = len(found.scores)
    strip, gap, top = 0.34, 0.1, 0.2
    below = 1.5 if sound else 0.35 + 0.08 * min(longest, 16)
    width = 9.0 if sound else float(np.clip(3.1 + 0.28 * clip.axis.positions, 5, 13))
    height = top + rows * (strip + gap) + below
    figure = Figure(figsize=(width, height))
    left, body = 1.75 / width, (width - 1.75 - 1.35) / width
    end = clip.axis.seconds if clip.axis.seconds is not None else float(clip.axis.positions)
    for row, one in enumerate(found.scores):
        y = (height - top - row * (strip + gap) - strip) / height
        axes = figure.add_axes((left, y, body, strip / height))
        values = np.array(one.values)
        hidden = np.ones(len(values), dtype=bool)
        hidden[list(found.removable)] = False
        shown = np.ma.masked_array(values, hidden)
        reach = float(np.abs(shown).max()) or 1.0
        signed = float(shown.min()) < 0
        axes.imshow(
            shown[None],
            aspect="auto",
            extent=(0, end, 0, 1),
            cmap="RdBu_r" if signed else "Reds",
            vmin=-reach if signed else float(shown.min()),
            vmax=reach,
            interpolation="nearest",
        )
        axes.set_yticks([0.5], [one.method])
        last = row == rows - 1 and not sound
        axes.tick_params(
            length=0, labelsize=TEXT_SIZE - 1, labelcolor=INK, labelbottom=last, axis="both"
        )
        axes.set_xticks([])
        told = f"{float(shown.min()):.2g} to {float(shown.max()):.2g}"
        axes.text(1.01, 0.5, told, size=SMALL, color=INK, va="center", transform=axes.transAxes)
        axes.spines[:].set_color("#e3e6ea")
        if last and clip.axis.tokens:
            step = -(-len(clip.axis.tokens) // MOST_TOKENS)
            names = [_short(token) for token in clip.axis.tokens[::step]]
            places = [place + 0.5 for place in range(0, len(clip.axis.tokens), step)]
            axes.set_xticks(places, names, rotation=90, size=SMALL)
    if sound:
        _heard(figure.add_axes((left, 0.5 / height, body, 0.75 / height)), clip)
    save(figure, path)


def _short(token: str) -> str:
    return token if len(token) <= 16 else f"{token[:15]}…"


def _heard(axes: Axes, clip: ExplainedClip) -> None:
    heard, seconds = clip.spectrogram, clip.axis.seconds
    assert heard is not None
    assert seconds is not None
    axes.imshow(
        np.array(heard.decibels),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, heard.highest_hertz / 1000),
        cmap="Greys",
    )
    axes.set_xlabel("time, s", size=TEXT_SIZE - 1, color=INK)
    axes.set_ylabel("kHz", size=TEXT_SIZE - 1, color=INK)
    axes.tick_params(labelsize=SMALL, labelcolor=INK, color=FAINT)
    axes.spines[:].set_visible(False)
    scale, free = seconds / clip.axis.positions, -1.0
    each = 0.075 * seconds / 7
    for word in clip.axis.words:
        middle = (word.start + word.end) / 2 * scale
        axes.axvspan(word.start * scale, word.end * scale, color="#1f5f9e", alpha=0.13, linewidth=0)
        if middle - each * len(word.text) / 2 >= free:
            axes.text(
                middle, 1.04, word.text, size=SMALL, color=INK, ha="center", va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
            free = middle + each * len(word.text) / 2


def degradation_figure(found: Degradation, path: Path) -> None:
    """Draw what is left of the answer's probability over the share of the input that is gone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    layered = [curve.method for curve in found.curves if curve.method not in COLOURS]
    shares = np.array([0.0, *found.shares]) * 100
    for curve in found.curves:
        own = curve.method in COLOURS
        depth = 0 if own else layered.index(curve.method) / max(1, len(layered) - 1)
        axes.plot(
            shares, [1.0, *curve.normalised], color=COLOURS.get(curve.method, _blue(depth)),
            linestyle="dashed" if own else "solid", linewidth=1.5,
            marker="o", markersize=3, label=curve.method,
        )  # fmt: skip
    dress(
        axes,
        f"{found.clips} inputs, the highest ranked removed first (as {found.removed_as})",
        "share removed, %",
        "normalised probability of the answer",
    )
    axes.axvline(100 * found.table_share, color=FAINT, linewidth=0.8)
    axes.legend(
        frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    save(figure, path)


def _blue(depth: float) -> tuple[float, float, float]:
    """Light for the lowest layer (0), dark for the highest (1)."""
    light, dark = (0.62, 0.78, 0.93), (0.03, 0.19, 0.42)
    return (
        light[0] + (dark[0] - light[0]) * depth,
        light[1] + (dark[1] - light[1]) * depth,
        light[2] + (dark[2] - light[2]) * depth,
    )
