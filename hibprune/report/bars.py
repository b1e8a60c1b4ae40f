"""Bars of the page: what layers keep, what repair brought back, and how latencies spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from hibprune.records.manifest import Manifest, UnitSummary
from hibprune.records.repair import Repair
from hibprune.records.units import pool_words
from hibprune.records.variants import ORIGINAL, Variant
from hibprune.report.numbers import capitalised, milliseconds, percent
from hibprune.report.template import filled_page
from hibprune.report.wording import ratio_interval

Look = Literal["kept", "lost", "after", "line", "tick"]
"""How a bar looks: solid, hatched, slim, a line, or a mark."""


class Bar(NamedTuple):
    """A part of a track, in percent of its width, and what it stands for."""

    start: float
    width: float
    look: Look


class Row(NamedTuple):
    """A track with its name before and its figures in words behind it."""

    name: str
    bars: list[Bar]
    told: str


class Group(NamedTuple):
    """Tracks of one scale, under a heading where there are several groups."""

    heading: str
    rows: list[Row]


class Drawn(NamedTuple):
    """What stands in a section before its first table, or in its place."""

    html: str
    replaces_table: bool


def drawn_sections(manifest: Manifest) -> dict[str, Drawn]:
    """The bars of each section by its title."""
    found = {
        capitalised(pool_words(pool)): Drawn(units_bars(units), True)
        for pool, units in manifest.others.items()
        if units.kept
    }
    if manifest.repair is not None and manifest.repair.sublayers:
        found["Repair"] = Drawn(repair_bars(manifest.repair), True)
    return found


def units_bars(units: UnitSummary) -> str:
    """What each layer keeps of its units, all layers on one scale."""
    totals = {layer: kept + len(units.removed.get(layer, ())) for layer, kept in units.kept.items()}
    widest = max(totals.values())
    rows = []
    for layer, kept in sorted(units.kept.items()):
        parts = (_share(kept, widest), _share(totals[layer] - kept, widest))
        bars = [Bar(0.0, parts[0], "kept"), Bar(parts[0], parts[1], "lost")]
        rows.append(Row(f"layer {layer}", bars, f"{kept} of {totals[layer]} kept"))
    return _filled([Group("", rows)], "What each layer keeps", "Solid: kept; hatched: removed.")


def repair_bars(repair: Repair) -> str:
    """The error of each sublayer before and after the fit, all on one scale."""
    widest = max(max(one.before, one.after) for one in repair.sublayers)
    rows = []
    for one in repair.sublayers:
        after = one.after if one.refitted else one.before
        bars = [
            Bar(0.0, _share(one.before, widest), "lost"),
            Bar(0.0, _share(after, widest), "after"),
        ]
        found = percent(one.after, 1) if one.refitted else "old weights kept"
        told = f"{percent(one.before, 1)} → {found}; {one.removed} removed, {one.kept} kept"
        rows.append(Row(f"layer {one.layer}, {one.name}", bars, told))
    return _filled(
        [Group("", rows)],
        "Error of each sublayer before and after the fit",
        "Hatched: the error that removal left; solid: what the fit left of it.",
    )


def latency_bars(variants: Sequence[Variant]) -> str:
    """Median, 90th and 99th percentile of every variant, each length on a scale of its own."""
    groups = []
    for place, first in enumerate(variants[0].latency):
        widest = max(one.latency[place].times.p99 for one in variants)
        rows = list(_latency_rows(variants, place, widest))
        groups.append(Group(first.length.as_input, rows))
    return _filled(
        groups,
        "How latencies spread",
        "Bar: the median; line: to the 90th percentile; mark: the 99th.",
    )


def _latency_rows(variants: Sequence[Variant], place: int, widest: float) -> Iterator[Row]:
    for variant in variants:
        times = variant.latency[place].times
        median, high, highest = (_share(one, widest) for one in (times.p50, times.p90, times.p99))
        bars = [
            Bar(0.0, median, "kept"), Bar(median, high - median, "line"), Bar(highest, 0.0, "tick"),
        ]  # fmt: skip
        own = variant.latency[place]
        ratio = "" if variant.name == ORIGINAL else f", {own.ratio:.2f}× ({ratio_interval(own)})"
        told = (
            f"{milliseconds(times.p50)}{ratio}; 90 % within {milliseconds(times.p90)}, 99 % within "
            f"{milliseconds(times.p99)}"
        )
        yield Row(variant.name, bars, told)


def _share(part: float, whole: float) -> float:
    """In percent of a track, of which nothing is left out."""
    return round(100 * min(part / whole, 1.0), 2) if whole > 0 else 0.0


def _filled(groups: Sequence[Group], caption: str, reading: str) -> str:
    return filled_page(
        "bars.html.jinja", {"groups": groups, "caption": caption, "reading": reading}
    )
