"""Which heads training keeps, by kind of attention: a picture and a table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hibprune.records.explanation import KeptHeads
from hibprune.report.explanation_figures import NAMES, SMALL, STACK_COLOURS
from hibprune.report.figures import FAINT, INK, KEPT, dress, save
from hibprune.report.wording import percent_estimate


def kept_rows(found: KeptHeads) -> list[dict[str, object]]:
    """A row for each penalty, the model as it is in front."""
    total = sum(found.heads.values())
    rows: list[dict[str, object]] = [
        {
            "penalty": "no gates",
            "kept": f"{total} of {total}",
            "stacks": [str(count) for count in found.heads.values()],
            "value": percent_estimate(found.whole),
        }
    ]
    for point in found.points:
        kept = Counter(head.stack for head in point.kept)
        rows.append(
            {
                "penalty": f"{point.penalty:g}",
                "kept": f"{len(point.kept)} of {total}",
                "stacks": [str(kept[name]) for name in found.heads],
                "value": percent_estimate(point.value),
            }
        )
    return rows


def gates_figure(found: KeptHeads, path: Path) -> None:
    """Draw the metric over all heads kept, and those of each stack (Voita et al. 2019)."""
    from matplotlib.figure import Figure

    several, total = len(found.heads) > 1, sum(found.heads.values())
    figure = Figure(figsize=(10.4 if several else 5.6, 3.8), layout="constrained")
    grid = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    points = sorted(found.points, key=lambda one: len(one.kept))
    kept = [len(one.kept) for one in points]
    axes = grid[0]
    axes.axhline(100 * found.whole.value, color=FAINT, linewidth=1, linestyle="dashed")
    axes.axhspan(
        100 * found.whole.interval.low, 100 * found.whole.interval.high, color=FAINT, alpha=0.15
    )
    values = [100 * one.value.value for one in points]
    axes.plot(kept, values, color=KEPT, marker="o", markersize=4, linewidth=1.5)
    axes.vlines(
        kept,
        [100 * one.value.interval.low for one in points],
        [100 * one.value.interval.high for one in points],
        color=KEPT,
        linewidth=0.8,
    )
    axes.set_xlim(0, 1.04 * total)
    aim = "higher" if found.higher_is_better else "lower"
    dress(
        axes,
        "The metric over the heads that are kept",
        f"heads kept of {total}",
        f"{found.metric}, % ({aim} is better)",
    )
    if several:
        axes = grid[1]
        for name in found.heads:
            own = [sum(head.stack == name for head in one.kept) for one in points]
            axes.plot(
                kept, own, color=STACK_COLOURS[name], marker="o", markersize=4, linewidth=1.5,
                label=f"{NAMES[name]} (of {found.heads[name]})",
            )  # fmt: skip
        axes.set_xlim(0, 1.04 * total)
        axes.set_ylim(0, 1.3 * max(found.heads.values()))
        dress(axes, "Heads kept by kind of attention", "heads kept in all", "heads kept")
        axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="upper left")
    save(figure, path)
