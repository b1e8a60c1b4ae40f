"""The files of a report: page, model card and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hibprune.execution.files import write_text
from hibprune.records.manifest import Manifest
from hibprune.records.units import Plan, Scores
from hibprune.report.answers import TITLE, changed_answers, changed_clips
from hibprune.report.bars import drawn_sections, latency_bars
from hibprune.report.card import model_card
from hibprune.report.figures import head_map, latency_figure, score_spread
from hibprune.report.html import heads_table, report_html
from hibprune.report.page import report_markdown
from hibprune.report.ranking import score_label
from hibprune.report.recovery import FIGURE, recovery_figure
from hibprune.report.variants_figure import variants_figure


def write_report(
    manifest: Manifest,
    scores: Scores,
    plan: Plan,
    recipe_yaml: str,
    directory: Path,
    sound_of: Callable[[str], bytes | None] | None = None,
) -> list[str]:
    """Write pictures, report and model card; return their paths inside `directory`.

    `sound_of` gives a validation clip's WAV by its id, for the page to play; None: none are played.
    """
    label = score_label(manifest)
    written = ["figures/variants.png", "figures/heads.png", "figures/spread.png"]
    variants_figure(manifest, directory / "figures/variants.png")
    head_map(scores, plan, directory / "figures/heads.png", label)
    one_round = len(manifest.rounds) < 2
    score_spread(scores, plan, directory / "figures/spread.png", label, with_cut=one_round)
    if manifest.original.latency:
        written.append("figures/latency.png")
        latency_figure(manifest.variants, directory / "figures/latency.png")
    if manifest.recovery is not None:
        written.append(FIGURE)
        recovery_figure(manifest.recovery, directory / FIGURE)
    markdown = report_markdown(
        manifest, scores, plan, recipe_yaml, changed_answers(manifest, directory)
    )
    write_text(directory / "report.md", markdown)
    clips = None if sound_of is None else changed_clips(manifest, directory, sound_of)
    drawn = {**drawn_sections(manifest), **({TITLE: clips} if clips is not None else {})}
    heads, timed = heads_table(scores, plan, label), manifest.original.latency
    latency = latency_bars(manifest.variants) if timed else ""
    page = report_html(manifest.recipe, markdown, heads, latency, drawn, directory)
    write_text(directory / "report.html", page)
    write_text(directory / "README.md", model_card(manifest, recipe_yaml))
    return [*written, "report.md", "report.html", "README.md"]
