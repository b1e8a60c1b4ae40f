"""The closing table on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hibprune.records.manifest import Manifest
from hibprune.records.measurements import Gate
from hibprune.report.summary import summary_rows
from hibprune.report.wording import (
    WITHIN_NOISE,
    by_setting,
    gate_interval,
    gate_number,
    gate_value,
)


def closing_table(manifest: Manifest) -> Group:
    """Original against pruned at a glance, then the gates; fits 80 columns, needs no colour."""
    # Text, never markup strings: a recipe's name may hold square brackets.
    table = Table(
        title=Text(manifest.recipe, style="bold", overflow="ellipsis", no_wrap=True),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("")
    for heading in ("original", "pruned", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary_rows(manifest):
        table.add_row(
            _cell(row.label, row.label_detail),
            _cell(row.original, row.original_detail),
            _cell(row.pruned, row.pruned_detail),
            _cell(row.change, row.change_detail),
        )
    lines: list[RenderableType] = [table, _footnote(manifest)]
    if manifest.gates:
        lines.append(Text())
        lines.extend(_gate_line(gate) for gate in manifest.gates)
    return Group(*lines)


def _cell(figure: str, detail: str) -> Text:
    cell = Text(figure)
    if detail:
        cell.append(f"\n{detail}", style="dim")
    return cell


def _footnote(manifest: Manifest) -> Text:
    given = manifest.medium.counted(manifest.metric.n)
    parts = [f"Ranges are 95 % intervals; metric over {given}"]
    settings = list(by_setting(manifest.latency))
    if settings:
        parts.append("latency is the median" + (f" ({settings[0]})" if len(settings) == 1 else ""))
    return Text(f"{'; '.join(parts)}.", style="dim")


def _gate_line(gate: Gate) -> Text:
    mark, style, verdict = ("✓", "green", "") if gate.passed else ("✗", "bold red", "  FAILED")
    found = f" {gate.name}: {gate_value(gate)}, limit {gate_number(gate.limit)}"
    close = f"\n  {WITHIN_NOISE}: {gate_interval(gate)}" if gate.within_noise else ""
    return Text.assemble((mark, style), found, (verdict, style), (close, "dim"))
