"""The closing table on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hibprune.records.manifest import Manifest
from hibprune.records.measurements import Gate, Verdict
from hibprune.report.caveats import caveats
from hibprune.report.gates import MARKS, gate_reason, gate_summary
from hibprune.report.numbers import capitalised
from hibprune.report.variants import (
    deployment_sentences,
    missing_sentences,
    speed_headings,
    variant_rows,
)
from hibprune.report.wording import by_setting, heads_sentence, loss_sentence, metric_name

STYLES: dict[Verdict, str] = {"passed": "green", "failed": "bold red", "undecided": "yellow"}


def closing_table(manifest: Manifest) -> Group:
    """All variants at a glance, which to deploy, then the gates; needs no colour."""
    # Text, never markup strings: a recipe's name may hold square brackets.
    table = Table(
        title=Text(manifest.recipe, style="bold", overflow="ellipsis", no_wrap=True),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    name = capitalised(metric_name(manifest.metric.name))
    table.add_column("")
    for heading in (name, "ONNX", *(f"speed,\n{one}" for one in speed_headings(manifest))):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in variant_rows(manifest):
        speeds = zip(row.speeds, row.speed_intervals, strict=True)
        table.add_row(
            cell(row.name, row.finding),
            cell(row.metric, row.interval),
            cell(row.size, row.size_change),
            *(cell(speed, interval) for speed, interval in speeds),
        )
    said = [heads_sentence(manifest), *missing_sentences(manifest), *deployment_sentences(manifest)]
    lines: list[RenderableType] = [table, _footnote(manifest), Text(), Text(" ".join(said))]
    if warned := caveats(manifest):
        lines.append(Text())
        lines.extend(Text.assemble(("!", "bold yellow"), f" {sentence}") for sentence in warned)
    if manifest.gates:
        lines.append(Text(f"\nGates on {manifest.judged}:"))
        lines.extend(_gate_line(gate) for gate in manifest.gates)
    return Group(*lines)


def cell(figure: str, detail: str) -> Text:
    """A figure, with a detail below it in fainter letters."""
    cell = Text(figure)
    if detail:
        cell.append(f"\n{detail}", style="dim")
    return cell


def _footnote(manifest: Manifest) -> Text:
    metric, given = manifest.metric, manifest.medium.counted(manifest.metric.n)
    aim = "higher" if metric.higher_is_better else "lower"
    name = metric_name(metric.name)
    parts = [f"Ranges are 95 % intervals; {name} ({aim} is better) over {given}"]
    settings = list(by_setting(manifest.original.latency))
    if settings:
        parts.append("speed by medians" + (f" ({settings[0]})" if len(settings) == 1 else ""))
    sentences = [f"{'; '.join(parts)}.", *filter(None, [loss_sentence(manifest)])]
    return Text(" ".join(sentences), style="dim")


def _gate_line(gate: Gate) -> Text:
    mark, verdict = MARKS[gate.verdict].split(" ")
    style, reason = STYLES[gate.verdict], gate_reason(gate)
    told = "" if gate.verdict == "passed" else f"  {verdict}"
    why = f"\n  {reason}" if reason else ""
    return Text.assemble((mark, style), f" {gate_summary(gate)}", (told, style), (why, "dim"))
