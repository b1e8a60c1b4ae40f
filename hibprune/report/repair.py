"""Sections of the report on units that went beside heads, and on the repair of what stays."""

from __future__ import annotations

from collections.abc import Sequence

from hibprune.records.comparison import NO_REPAIR, TriedRepair
from hibprune.records.manifest import Manifest, UnitSummary
from hibprune.records.repair import FactoredProjection, Repair, factored_weights
from hibprune.records.units import Pool, pool_words
from hibprune.report import numbers, wording
from hibprune.report.markdown import table
from hibprune.report.numbers import capitalised, percent
from hibprune.report.wording import NAMED


def others_sections(manifest: Manifest) -> list[str]:
    """How many units beside heads every layer keeps: a section for each kind that was to go."""
    return [_units_section(pool, units) for pool, units in manifest.others.items()]


def _units_section(pool: Pool, units: UnitSummary) -> str:
    rows = [(layer, len(units.removed.get(layer, ())), kept) for layer, kept in units.kept.items()]
    return "\n\n".join(
        [
            f"## {capitalised(pool_words(pool))}",
            f"{units.removed_count} of {units.total} {NAMED[pool]} went, scored "
            f"by {units.method} ({units.scope}).",
            table("rrr", ["layer", "removed", "kept"], rows),
        ]
    )


def ranks_section(manifest: Manifest) -> str:
    """The rank of each projection, layer by layer; empty where none were to become two matrices."""
    ranks = manifest.ranks
    if ranks is None:
        return ""
    names = list(dict.fromkeys(one.name for one in ranks.factored))
    layers: dict[int, dict[str, FactoredProjection]] = {}
    for one in ranks.factored:
        layers.setdefault(one.layer, {})[one.name] = one
    rows = [
        (
            layer,
            *(_rank(own.get(name)) for name in names),
            *map(numbers.count, factored_weights(own.values())),
        )
        for layer, own in sorted(layers.items())
    ]
    header = ["layer", *names, "weights before", "after"]
    known = any(one.error is not None for one in ranks.factored)
    reading = (
        " In parentheses: mean square of what is missing in a projection's output, as a share of "
        f"its variance, on held-out {manifest.medium.many}."
        if known
        else " Matrices alone were looked at, no data."
    )
    return "\n\n".join(
        [
            "## Ranks",
            wording.ranks_sentence(manifest).strip()
            + _to_go(ranks.share)
            + _worse_than_none(ranks.factored, manifest.medium.many),
            *(
                [
                    table("r" * len(header), header, rows),
                    f"*Rank of each projection, by its path within a layer of the encoder; – where "
                    f"it is one matrix.{reading}*",
                ]
                if ranks.factored
                else []
            ),
        ]
    )


def _to_go(share: float | None) -> str:
    if share is None:
        return ""
    return f" Of each one's weights {percent(share, 1)} or more were to go."


def _worse_than_none(factored: Sequence[FactoredProjection], clips: str) -> str:
    """How many projections miss more than all there is; begins with a space, empty where none."""
    # As rounded in the table.
    worse = sum(one.error is not None and round(one.error, 3) > 1 for one in factored)
    if not worse:
        return ""
    return (
        f" In {worse} of {len(factored)} the error on held-out {clips} is above 100 %: more is "
        f"missing than if they gave out their mean. Let fewer weights go or fit on more {clips}."
    )


def _rank(one: FactoredProjection | None) -> str:
    if one is None:
        return "–"
    return str(one.rank) if one.error is None else f"{one.rank} ({percent(one.error, 1)})"


def repair_name(repair: TriedRepair) -> str:
    """What was done with the weights that stay, in a few words."""
    if repair.kind == NO_REPAIR:
        return "no repair"
    steps = f" and {repair.refine_steps} gradient steps a layer" if repair.refine_steps else ""
    return f"repair by {repair.kind}{steps}"


def repair_section(manifest: Manifest) -> str:
    """What the fit brought back, sublayer by sublayer; empty where nothing was fitted."""
    repair = manifest.repair
    if repair is None or not repair.sublayers:
        return ""
    rows = [
        (
            one.layer,
            one.name,
            one.removed,
            one.kept,
            percent(one.before, 1),
            percent(one.after, 1) if one.refitted else "old weights kept",
        )
        for one in repair.sublayers
    ]
    alone = len(repair.left_alone)
    stayed = (
        f" In {alone} of {len(repair.sublayers)} sublayers the fit did not help on "
        f"{manifest.medium.many} held out of it, and the old weights stayed."
        if alone
        else ""
    )
    labels = (
        f"decoders were fed {repair.tokens} tokens of transcripts"
        if repair.tokens
        else "no labels were used"
    )
    trained = capitalised(f"{'' if repair.refinements else 'nothing was trained, and '}{labels}.")
    clips = f"{repair.clips} calibration {manifest.medium.many}"
    fitted = f"{clips} and {repair.frames} frames" if repair.frames else clips
    sections = [
        "## Repair",
        f"The weights that stay were fitted ({repair.kind}) to what the original does, on "
        f"{fitted}; "
        f"{repair.held_out} others were held out to tell how strongly, and whether at all."
        f"{stayed} {trained}",
        table(
            "rlrrrr",
            ["layer", "sublayer", "removed", "kept", "error before", "error after"],
            rows,
        ),
        "*Error: mean square of what is missing in a sublayer's output, drift of those below "
        f"included, as a share of the variance of what it should write; on held-out "
        f"{manifest.medium.many}.*",
    ]
    return "\n\n".join(sections + _refinement(repair, manifest.medium.many))


def _refinement(repair: Repair, clips: str) -> list[str]:
    """What gradient steps behind the fit brought, layer by layer; nothing where none were made."""
    if not repair.refinements:
        return []
    rows = [
        (
            one.layer,
            one.steps,
            percent(one.before, 1),
            percent(one.after, 1) if one.kept else "fitted weights kept",
        )
        for one in repair.refinements
    ]
    alone = sum(not one.kept for one in repair.refinements)
    stayed = (
        f" In {alone} of {len(rows)} layers they did not help on the {clips} held out, and the "
        "fitted weights stayed."
        if alone
        else ""
    )
    return [
        "### Gradient steps behind the fit",
        "The matrices of each layer were moved towards what the original gives out, without "
        f"labels.{stayed}",
        table("rrrr", ["layer", "steps kept", "error fitted", "error refined"], rows),
        "*Error: mean square of what is missing in the stream behind the layer's sublayers, as a "
        f"share of its variance, summed over them; on held-out {clips}.*",
    ]
