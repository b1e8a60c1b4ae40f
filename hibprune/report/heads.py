"""The report's sections on heads: which went, how sure the choice is, how they were scored."""

from __future__ import annotations

from hibprune.records.manifest import Manifest
from hibprune.records.units import Plan, Scores, heads_by_layer
from hibprune.report.markdown import table
from hibprune.report.numbers import duration
from hibprune.report.ranking import ranking_sentence
from hibprune.report.spread import cut_of, heads_near_cut, spread_of


def heads_section(manifest: Manifest, scores: Scores, plan: Plan) -> str:
    kept = heads_by_layer(plan.kept)
    removed = manifest.heads.removed
    rows = [
        (layer, ", ".join(map(str, removed.get(layer, ()))) or "–", len(kept.get(layer, ())))
        for layer in sorted({*kept, *removed})
    ]
    return "\n\n".join(
        [
            "## Heads",
            "![Score of every head, the removed ones crossed out](figures/heads.png)",
            f"*How to read it: a row is a layer, the one nearest the {manifest.medium.name} at the "
            "bottom; a cell is a head; the lighter, the more it matters. "
            + ("Crossed-out heads are gone" if manifest.heads.removed_count else "None went")
            + ", blank places held no head to begin with.*",
            "![Scores of all heads in order](figures/spread.png)",
            _spread_caption(manifest, scores),
            _near_cut(scores, plan) if len(manifest.rounds) < 2 else _rounds(manifest),
            table("llr", ["layer", "removed heads (original indices)", "heads kept"], rows),
        ]
    )


def _spread_caption(manifest: Manifest, scores: Scores) -> str:
    parts = ["heads in order of score"]
    if len(scores.per_sample) > 1:
        bars = "bars reach one standard error over the calibration samples either way"
        crossing = ". Where bars cross the cut, other samples might have chosen other heads"
        parts.append(bars + (crossing if len(manifest.rounds) < 2 else ""))
    return f"*How to read it: {'; '.join(parts)}.*"


def _rounds(manifest: Manifest) -> str:
    rows = []
    for number, one in enumerate(manifest.rounds, start=1):
        removed = sum(map(len, one.removed.values()))
        went = "; ".join(
            f"{layer}: {', '.join(map(str, heads))}" for layer, heads in one.removed.items()
        )
        stability = "–" if one.split_half is None else f"{one.split_half:.2f}"
        rows.append((number, removed, went, stability, duration(one.seconds)))
    repair = "" if manifest.repair is None else f", repaired by {manifest.repair.kind}"
    header = ["round", "heads", "layer: heads that went", "split-half correlation", "scoring"]
    return (
        f"Heads went in {len(manifest.rounds)} rounds, and those left were scored again after each "
        f"on the model without the others{repair}. The pictures show the score a head had in its "
        "last round; as scores of different rounds come from different models, no one cut parts "
        "them."
        f"\n\n{table('rrlrr', header, rows)}"
    )


def _near_cut(scores: Scores, plan: Plan) -> str:
    spread = spread_of(scores, plan)
    if not (plan.removed and plan.kept):
        return "There is no cut to compare scores with."
    if cut_of(spread) is None:
        return (
            "No single score parts removed from kept heads: the budget held every layer to "
            "limits of its own."
        )
    near = heads_near_cut(spread)
    if near is None:
        return (
            "How many heads might have fallen on the other side of the cut cannot be told: there "
            "is one score of each head, not one for every sample."
        )
    subject = "1 head lies" if near == 1 else f"{near or 'No'} heads lie"
    return f"{subject} within one standard error of the cut."


def scoring_section(manifest: Manifest) -> str:
    attribution = manifest.attribution
    rows = [
        ("method", attribution.method),
        ("samples", attribution.samples or "none: it looks at no data"),
        ("time", duration(attribution.seconds)),
        *([] if attribution.steps is None else [("steps taken", attribution.steps)]),
        *((name, _setting(value)) for name, value in attribution.settings.items()),
    ]
    return (
        f"## How the heads were scored\n\n{table('ll', ['', ''], rows)}\n\n"
        f"{ranking_sentence(manifest)}"
    )


def _setting(value: str | int | float | bool | tuple[str, ...] | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
