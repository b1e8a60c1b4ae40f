"""The report's section on the mix that one number for all kinds of units came to."""

from __future__ import annotations

from collections.abc import Collection

from hibprune.records.manifest import BudgetSummary, Manifest, RankSummary, UnitSummary
from hibprune.records.repair import FactoredProjection
from hibprune.records.speedup import SpeedFound
from hibprune.records.units import POOLS, OneNumber, Plan, Pool, Scores, is_of_decoder, pool_words
from hibprune.report.markdown import table
from hibprune.report.numbers import listing, percent

COUNTED = {"parameters": "parameters", "multiply_adds": "multiply-adds"}

CONVOLUTIONS = (
    "*Layers of channels are the convolutions of the front end, others those of the encoder.*"
)


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
            f"{kinds}, was decided by the error that each adds for what it saves.",
            *([] if budget.speed is None else [_found(budget.speed)]),
            table("r" * len(header), header, rows),
            *_ranks(manifest.ranks),
            *([CONVOLUTIONS] if "channel" in columns else []),
            *_decoders_note(columns),
        ]
    )


def _decoders_note(pools: Collection[Pool]) -> list[str]:
    own = [pool_words(pool) for pool in pools if is_of_decoder(POOLS[pool][1])]
    if not own:
        return []
    return [f"*Layers of {listing(own)} are those of the decoder, others those of the encoder.*"]


def _ranks(ranks: RankSummary | None) -> list[str]:
    """The ranks that projections keep, a column for each; nothing where all are as they were."""
    if ranks is None or not ranks.factored:
        return []
    kept = {(one.layer, one.name): f"{one.rank} of {full_rank(one)}" for one in ranks.factored}
    names = list(dict.fromkeys(one.name for one in ranks.factored))
    rows = [
        (layer, *(kept.get((layer, name), "whole") for name in names))
        for layer in sorted({layer for layer, _ in kept})
    ]
    return [
        table("r" * (1 + len(names)), ["layer", *names], rows),
        "*Ranks kept of the encoder's projections that became two matrices, of those that there "
        "were; layers and projections that are not named are whole.*",
    ]


def full_rank(one: FactoredProjection) -> int:
    return min(one.rows, one.columns)


def _heads(scores: Scores, plan: Plan) -> dict[int, tuple[int, int]]:
    gone = set(plan.removed)
    layers: dict[int, tuple[int, int]] = {}
    for head in scores.heads:
        removed, kept = layers.get(head.layer, (0, 0))
        layers[head.layer] = (removed + (head in gone), kept + (head not in gone))
    return layers


def _others(units: UnitSummary) -> dict[int, tuple[int, int]]:
    return {layer: (len(units.removed.get(layer, ())), kept) for layer, kept in units.kept.items()}


def _found(speed: SpeedFound) -> str:
    """How a mix of the speed that was asked for was found."""
    tries = [
        f"{one.foretold:.2f} foretold, {one.measured:.2f} measured"
        + (f" with {one.factored} projections as two matrices" if one.factored else "")
        for one in speed.tries
    ]
    found = (
        "Savings in time are read off a latency table, which was measured on this machine kind by "
        f"kind; then the mix was exported, timed and corrected: {'; '.join(tries)} times as fast."
    )
    if any(one.factored for one in speed.tries) and not all(one.factored for one in speed.tries):
        with_ranks = "with" if speed.chosen.factored else "without"
        found += (
            f" Taken was a mix {with_ranks} such projections, {speed.chosen.measured:.2f} times as "
            "fast."
        )
    return found


def figure(name: OneNumber, amount: float) -> str:
    """What was asked for, as short as can be: `30 %`, `1.2 MB`, `1 point`, `2×`."""
    if name == "size_mb":
        return f"{amount:g} MB"
    if name == "metric_drop":
        return f"{100 * amount:g} point{'' if amount == 0.01 else 's'}"
    return f"{amount:g}×" if name == "speedup" else percent(amount, 1 if amount * 100 % 1 else 0)


FIGURES: dict[OneNumber, str] = {
    "parameters": "parameters left",
    "multiply_adds": "multiply-adds left",
    "size_mb": "size asked",
    "metric_drop": "loss asked",
    "speedup": "speed asked",
}
"""What such a figure is of."""


def asked(budget: BudgetSummary) -> str:
    """What a budget leaves, in words."""
    if budget.name == "size_mb":
        return f"{budget.asked:g} MB of files"
    if budget.name == "metric_drop":
        lost = f"{100 * budget.asked:g}"
        unit = "point" if lost == "1" else "points"
        return f"what costs at most {lost} {unit} on calibration clips held out"
    if budget.speed is not None:
        return f"a model {budget.asked:g} times as fast at {budget.speed.at}"
    return f"{percent(budget.asked, 1)} of the {COUNTED[budget.counted_in]}"
