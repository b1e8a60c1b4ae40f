"""The report's section on the mix that one number for all kinds of units came to."""

from __future__ import annotations

from hibprune.records.manifest import BudgetSummary, Manifest, UnitSummary
from hibprune.records.units import Plan, Pool, Scores, pool_words
from hibprune.report.markdown import table
from hibprune.report.numbers import listing, percent

COUNTED = {"parameters": "parameters", "multiply_adds": "multiply-adds"}

CONVOLUTIONS = (
    "*Layers of channels are the convolutions of the front end, others those of the encoder.*"
)
DECODER = "*Layers of decoder neurons are those of the decoder, others those of the encoder.*"


def mix_section(manifest: Manifest, scores: Scores, plan: Plan) -> str:
    """What went from where, layer by layer and kind by kind; empty where each kind had a number."""
    budget = manifest.budget
    if budget is None:
        return ""
    columns: dict[Pool, dict[int, tuple[int, int]]] = {"head": _heads(scores, plan)}
    columns |= {pool: _others(units) for pool, units in manifest.others.items()}
    layers = sorted({layer for own in columns.values() for layer in own})
    rows = [
        (layer, *(figure for own in columns.values() for figure in own.get(layer, ("", ""))))
        for layer in layers
    ]
    gone, left = (
        [sum(pair[place] for pair in own.values()) for own in columns.values()] for place in (0, 1)
    )
    rows.append(("all", *(one for pair in zip(gone, left, strict=True) for one in pair)))
    header = [
        "layer",
        *(f"{pool_words(pool)} {what}" for pool in columns for what in ("removed", "kept")),
    ]
    counted, kinds = COUNTED[budget.counted_in], listing(list(map(pool_words, budget.kinds)))
    return "\n\n".join(
        [
            "## Mix",
            f"The budget leaves {asked(budget)}; "
            f"{percent(budget.reached, 1)} of the {counted} are left. What went from where, of "
            f"{kinds}, was decided by the error that each unit adds for what it saves.",
            table("r" * len(header), header, rows),
            *([CONVOLUTIONS] if "channel" in columns else []),
            *([DECODER] if "decoder_neuron" in columns else []),
        ]
    )


def _heads(scores: Scores, plan: Plan) -> dict[int, tuple[int, int]]:
    gone = set(plan.removed)
    layers: dict[int, tuple[int, int]] = {}
    for head in scores.heads:
        removed, kept = layers.get(head.layer, (0, 0))
        layers[head.layer] = (removed + (head in gone), kept + (head not in gone))
    return layers


def _others(units: UnitSummary) -> dict[int, tuple[int, int]]:
    return {layer: (len(units.removed.get(layer, ())), kept) for layer, kept in units.kept.items()}


def asked(budget: BudgetSummary) -> str:
    """What a budget leaves, in words."""
    if budget.name == "size_mb":
        return f"{budget.asked:g} MB of files"
    if budget.name == "metric_drop":
        lost = f"{100 * budget.asked:g} points"
        return f"what costs at most {lost} on calibration clips held out"
    return f"{percent(budget.asked, 1)} of the {COUNTED[budget.counted_in]}"
