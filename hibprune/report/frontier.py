"""A frontier for people: a table on the terminal and in Markdown, and the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from hibprune.execution.files import write_text
from hibprune.records.frontier import Frontier, FrontierPoint
from hibprune.records.units import pool_words
from hibprune.records.variants import ORIGINAL, Variant
from hibprune.report.curves import COLOURS, MARKERS
from hibprune.report.figures import FAINT, INK, TEXT_SIZE, dress, save
from hibprune.report.html import markdown_page
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.mix import COUNTED, FIGURES, figure
from hibprune.report.numbers import capitalised, count, listing, percent
from hibprune.report.terminal import cell
from hibprune.report.variants import VariantRow, latency_work, variant_row
from hibprune.report.variants_figure import across
from hibprune.report.wording import Finding, by_setting, change_finding, factored_words, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEM = "frontier"


class Row(NamedTuple):
    """A model of a frontier at a glance."""

    budget: str
    removed: str
    parameters: str
    variant: VariantRow


def frontier_rows(frontier: Frontier) -> Iterator[Row]:
    """The unpruned models, then every point, the largest first, in every precision."""
    original = original_of(frontier)
    for rival in frontier.rivals:
        yield Row("–", "nothing", count(rival.parameters), variant_row(original, rival))
    for point in frontier.points:
        for variant in point.variants:
            yield Row(
                figure(point.budget.name, point.budget.asked),
                removed_units(point),
                count(variant.parameters),
                variant_row(original, variant),
            )


def original_of(frontier: Frontier) -> Variant:
    """The unpruned model."""
    return next(one for one in frontier.rivals if one.name == ORIGINAL)


def removed_units(point: FrontierPoint) -> str:
    """What a budget took, e.g. `19 heads and 295 channels; 5 projections factored`."""
    units = [f"{number} {pool_words(pool, number)}" for pool, number in point.removed.items()]
    factored = f"; {factored_words(point.factored)}" if point.factored else ""
    return f"{listing(units)}{factored}"


def _headings(frontier: Frontier) -> tuple[str, str, list[str]]:
    """What was asked, the metric, and the lengths that speeds were measured at."""
    speeds = [str(one.length) for one in original_of(frontier).latency]
    asked = FIGURES[frontier.points[0].budget.name]
    return asked, capitalised(metric_name(frontier.metric.name)), speeds


def frontier_table(frontier: Frontier) -> Group:
    """All models at a glance."""
    left, metric, speeds = _headings(frontier)
    found = Table(
        title=Text(frontier.recipe, style="bold", overflow="ellipsis", no_wrap=True),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    found.add_column(left, justify="right")
    found.add_column("")
    for heading in (metric, "ONNX", *(f"speed,\n{one}" for one in speeds)):
        found.add_column(heading, justify="right", no_wrap=True)
    for row in frontier_rows(frontier):
        one = row.variant
        found.add_row(
            row.budget,
            cell(one.name, one.finding),
            cell(one.metric, one.interval),
            cell(one.size, one.size_change),
            *(
                cell(speed, interval)
                for speed, interval in zip(one.speeds, one.speed_intervals, strict=True)
            ),
        )
    return Group(found, Text(" ".join(_remarks(frontier)), style="dim"))


def _remarks(frontier: Frontier) -> list[str]:
    settings = list(by_setting(original_of(frontier).latency))
    speed = (
        [f"Speed is against the original, all models timed in turn ({listing(settings)})."]
        if settings
        else []
    )
    return ["Ranges are 95 % intervals.", *speed]


def frontier_markdown(frontier: Frontier) -> str:
    """The page: picture, table, what was taken from where, and what it was run by."""
    left, metric, speeds = _headings(frontier)
    counted = COUNTED[frontier.points[0].budget.counted_in]
    header = [left, "variant", metric, "finding", "parameters", "ONNX"]
    header += [f"speed, {one}" for one in speeds]
    rows = [
        (
            row.budget,
            row.variant.name,
            f"{row.variant.metric} ({row.variant.interval})",
            row.variant.finding,
            row.parameters,
            row.variant.size,
            *(
                f"{speed} ({interval})" if interval else speed
                for speed, interval in zip(
                    row.variant.speeds, row.variant.speed_intervals, strict=True
                )
            ),
        )
        for row in frontier_rows(frontier)
    ]
    mixes = [
        (
            figure(point.budget.name, point.budget.asked),
            percent(point.budget.reached, 1),
            removed_units(point),
            f"{point.directory}/report.md",
        )
        for point in frontier.points
    ]
    missing = [
        f"{point.label}: {plain(one.name)} was not made: {plain(one.reason.rstrip('.'))}."
        for point in frontier.points
        for one in point.missing
    ]
    return (
        "\n\n".join(
            [
                f"# {plain(frontier.recipe)}: what each budget costs",
                *_verdict(frontier),
                f"![{metric} against latency and against size]({STEM}.png)",
                table("rlrlrr" + "r" * len(speeds), header, rows),
                plain(" ".join(_remarks(frontier))),
                *missing,
                "## What went",
                table("rrll", ["asked", f"{counted} left", "removed", "report"], mixes),
                *([fenced(frontier.command, "sh")] if frontier.command else []),
            ]
        )
        + "\n"
    )


def _verdict(frontier: Frontier) -> Iterator[str]:
    """The smallest of the models without a loss, or else of those whose loss may be chance."""
    original, metric = original_of(frontier), metric_name(frontier.metric.name)
    made = [(point, variant) for point in frontier.points for variant in point.variants]
    for accepted, said in (
        ((None, "no change", "within noise"), "The smallest without a loss beyond noise"),
        (("unconfirmed",), f"No budget is shown to keep the {metric}; the smallest whose loss the "
         "data cannot confirm"),
    ):  # fmt: skip
        kept = [one for one in made if _loss(original, one[1]) in accepted]
        if kept:
            yield f"**{said} is {_at_a_glance(original, *min(kept, key=_bytes), metric)}.**"
            return
    yield f"**Every budget costs more {metric} than noise explains.**"


def _bytes(made: tuple[FrontierPoint, Variant]) -> int:
    return made[1].size_bytes


def _loss(original: Variant, variant: Variant) -> Finding | None:
    """What a loss amounts to; None for a gain."""
    before, after = original.metric, variant.metric
    if after.value != before.value and (after.value > before.value) == after.higher_is_better:
        return None
    return change_finding(before, after, variant.change)


def _at_a_glance(original: Variant, point: FrontierPoint, variant: Variant, metric: str) -> str:
    row = variant_row(original, variant)
    speeds = [
        f"{speed} as fast at {at.length}"
        for speed, at in zip(row.speeds, original.latency, strict=True)
    ]
    name, asked = point.budget.name, point.budget.asked
    told = ", ".join([f"{row.metric} ({row.interval})", row.size, *speeds[-1:]])
    return f"{plain(variant.name)} at {FIGURES[name]} {figure(name, asked)}: {metric} {told}"


def write_frontier(frontier: Frontier, directory: Path) -> None:
    """Write page, pictures and, last of all, the JSON."""
    for suffix in ("png", "svg"):
        frontier_figure(frontier, directory / f"{STEM}.{suffix}")
    markdown = frontier_markdown(frontier)
    write_text(directory / f"{STEM}.md", markdown)
    title = f"what budgets cost, {frontier.recipe}"
    write_text(directory / f"{STEM}.html", markdown_page(title, markdown, directory))
    write_text(directory / f"{STEM}.json", frontier.model_dump_json(indent=1) + "\n")


def frontier_figure(frontier: Frontier, path: Path) -> None:
    """Draw the metric against median latency at every length, and against the size of the files.

    A line for each precision goes from budget to budget; the unpruned models stand alone, hollow.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lengths = range(len(original_of(frontier).latency))
    panels = [*lengths, None]
    figure = Figure(figsize=(8.2, 0.6 + 3.1 * len(panels)), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    aim = "higher" if frontier.metric.higher_is_better else "lower"
    name = capitalised(metric_name(frontier.metric.name))
    for axes, place in zip(all_axes, panels, strict=True):
        precisions = dict.fromkeys(
            variant.precision for point in frontier.points for variant in point.variants
        )
        for number, precision in enumerate(precisions):
            own = [
                variant
                for point in frontier.points
                for variant in point.variants
                if variant.precision == precision
            ]
            _draw(axes, own, place, COLOURS[number], MARKERS[number], f"pruned, {precision}")
        for rival in frontier.rivals:
            known = list(precisions)
            at = known.index(rival.precision) if rival.precision in known else len(known)
            _draw(axes, [rival], place, COLOURS[at], MARKERS[at], rival.name, hollow=True)
        axis = "size of the ONNX files (MB)"
        title = f"{name} ({aim} is better) against size"
        if place is not None:
            axis = "median latency (ms)"
            title = f"{name} against latency, {latency_work(frontier.rivals[0].latency[place])}"
        dress(axes, title, axis, "")
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=_decimals(axes)))
        axes.set_xlim(left=0)
    all_axes[0].legend(frameon=False, fontsize=TEXT_SIZE - 1, labelcolor=INK)
    figure.supxlabel(
        "Whiskers: 95 % intervals; of the latency by that of the speed-up.",
        x=0.01,
        ha="left",
        size=TEXT_SIZE - 1,
        color=INK,
    )
    save(figure, path)


def _draw(
    axes: Axes,
    variants: list[Variant],
    place: int | None,
    colour: str,
    marker: str,
    label: str,
    hollow: bool = False,
) -> None:
    points = [across(variant, place) for variant in variants]
    values = [variant.metric.value for variant in variants]
    axes.errorbar(
        [x for x, _, _ in points],
        values,
        xerr=[[x - low for x, low, _ in points], [high - x for x, _, high in points]],
        yerr=[
            [v - one.metric.interval.low for v, one in zip(values, variants, strict=True)],
            [one.metric.interval.high - v for v, one in zip(values, variants, strict=True)],
        ],
        color=colour,
        ecolor=FAINT,
        elinewidth=1.0,
        marker=marker,
        markersize=6,
        markerfacecolor="white" if hollow else colour,
        linewidth=0 if hollow else 1.5,
        label=label,
    )


def _decimals(axes: Axes) -> int:
    """Of percentages on an axis whose ticks may be less than a point apart."""
    low, high = axes.get_ylim()
    return 0 if high - low > 0.06 else 1
