"""The picture of a run's variants: the metric against latency and against size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hibprune.records.manifest import Manifest
from hibprune.records.variants import Variant
from hibprune.report.figures import FAINT, INK, KEPT, TEXT_SIZE, dress, save
from hibprune.report.numbers import capitalised
from hibprune.report.variants import latency_work
from hibprune.report.wording import metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = {"fp32": "o", "int8": "s", "fp16": "^"}
"""A form for each precision: it survives print and colour blindness."""


def variants_figure(manifest: Manifest, path: Path) -> None:
    """Draw every variant with whiskers; the originals are grey and hollow.

    Of several lengths the middle one is drawn; without latencies the size alone.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    latency = manifest.original.latency
    panels: list[int | None] = [len(latency) // 2, None] if latency else [None]
    figure = Figure(figsize=(7.4 if latency else 4.2, 3.3), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    aim = "higher" if manifest.metric.higher_is_better else "lower"
    name = capitalised(metric_name(manifest.metric.name))
    for axes, place in zip(all_axes, panels, strict=True):
        for variant in manifest.variants:
            _draw(axes, variant, place)
        title = "against size" if place is None else f"at {latency_work(latency[place])}"
        axis = "ONNX files, MB" if place is None else "median latency, ms"
        dress(axes, title, axis, "")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        low, high = axes.get_ylim()
        # Ticks less than a point apart would all read alike.
        decimals = 0 if high - low > 0.06 else 1
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=decimals))
    all_axes[0].set_ylabel(f"{name} ({aim} is better)", size=TEXT_SIZE, color=INK)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(4, len(labels)),
        frameon=False,
        fontsize=TEXT_SIZE - 1,
        labelcolor=INK,
    )
    save(figure, path)


def _draw(axes: Axes, variant: Variant, place: int | None) -> None:
    x, low, high = across(variant, place)
    value, interval = variant.metric.value, variant.metric.interval
    colour = FAINT if variant.is_rival else KEPT
    axes.errorbar(
        [x],
        [value],
        xerr=[[x - low], [high - x]],
        yerr=[[max(0.0, value - interval.low)], [max(0.0, interval.high - value)]],
        color=colour,
        ecolor=FAINT,
        elinewidth=1.0,
        marker=MARKERS[variant.precision],
        markersize=7,
        markerfacecolor="white" if variant.is_rival else colour,
        linewidth=0,
        label=variant.name,
    )


def across(variant: Variant, place: int | None) -> tuple[float, float, float]:
    """Where a variant stands and how sure that is: its latency in ms, or its size in MB."""
    if place is None:
        size = variant.size_bytes / 1e6
        return size, size, size
    one = variant.latency[place]
    time, (low, high) = one.times.p50, one.ratio_interval
    # The original's time is the same for all: what is unsure is the ratio.
    return time, min(time, time * one.ratio / high), max(time, time * one.ratio / low)
