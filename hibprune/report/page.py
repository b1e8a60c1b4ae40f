"""`report.md`: what was done, what it cost, what it gained, and what was not measured."""

from __future__ import annotations

from hibprune.records.manifest import DataSummary, Manifest
from hibprune.records.measurements import Gate, Measurement
from hibprune.records.medium import SYMBOLS
from hibprune.records.units import Plan, Scores, heads_by_layer
from hibprune.report import wording
from hibprune.report.deployed import latency_section, parity_section, size_section
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.spread import cut_of, heads_near_cut, spread_of

NAMED_CLIPS = 20


def report_markdown(manifest: Manifest, scores: Scores, plan: Plan, recipe_yaml: str) -> str:
    """Write the report; pictures are referenced under `figures/` beside it."""
    sections = [
        f"# Pruning report: {plain(manifest.recipe)}",
        _verdict(manifest),
        _metric(manifest),
        latency_section(manifest),
        size_section(manifest),
        _gates(manifest),
        _heads(manifest, scores, plan),
        _scoring(manifest),
        parity_section(manifest),
        _data(manifest),
        _steps(manifest),
        _machine(manifest),
        _not_measured(manifest),
        _reproduction(manifest, recipe_yaml),
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(manifest: Manifest) -> str:
    metric = wording.metric_sentence(manifest.metric, manifest.medium)
    sentences = [
        f"**{wording.heads_sentence(manifest)}** {metric}",
        wording.speed_sentences(manifest.latency),
        wording.size_sentence(manifest),
        plain(wording.gates_sentence(manifest.gates)),
        "Ranges in parentheses are 95 % intervals.",
    ]
    return "\n\n".join(sentences)


def _metric(manifest: Manifest) -> str:
    metric = manifest.metric
    rows = [
        _metric_row("original", metric.baseline, ""),
        _metric_row(
            "pruned, PyTorch",
            metric.pruned,
            wording.metric_finding(
                metric.baseline, metric.pruned, metric.pruned_change, manifest.medium
            ),
        ),
        _metric_row(
            "pruned, ONNX Runtime",
            metric.exported,
            wording.metric_finding(
                metric.baseline, metric.exported, metric.exported_change, manifest.medium
            ),
        ),
    ]
    name = wording.metric_name(metric.name)
    aim = "higher" if metric.higher_is_better else "lower"
    measured = manifest.medium.many
    header = ["model", f"{name} ({aim} is better)", "95 % interval", measured, "finding"]
    return f"## {name[0].upper()}{name[1:]}\n\n{table('lrrrl', header, rows)}"


def _metric_row(model: str, result: Measurement, finding: str) -> list[object]:
    value = wording.percent(result.value, wording.metric_decimals(result.n))
    return [model, value, wording.percent_interval(result.interval, result.n), result.n, finding]


def _gates(manifest: Manifest) -> str:
    if not manifest.gates:
        return "## Gates\n\nNo gates were set."
    rows = [_gate_row(gate) for gate in manifest.gates]
    header = ["gate", "limit", "measured", "95 % interval", "verdict"]
    return f"## Gates\n\n{table('lrrrl', header, rows)}"


def _gate_row(gate: Gate) -> tuple[str, ...]:
    verdict = "✓ passed" if gate.passed else "✗ FAILED"
    close = f", {wording.WITHIN_NOISE}" if gate.within_noise else ""
    return (
        gate.name,
        wording.gate_number(gate.limit),
        wording.gate_value(gate),
        wording.gate_interval(gate),
        f"{verdict}{close}",
    )


def _heads(manifest: Manifest, scores: Scores, plan: Plan) -> str:
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
            "bottom; a cell is a head; the lighter, the more it matters. Crossed-out "
            "heads are gone, blank places held no head to begin with.*",
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
        rows.append((number, removed, went, stability, wording.duration(one.seconds)))
    header = ["round", "heads", "layer: heads that went", "split-half correlation", "scoring"]
    return (
        f"Heads went in {len(manifest.rounds)} rounds, and those left were scored again after each "
        "on the model without the others. The pictures show the score a head had in its last "
        "round; as scores of different rounds come from different models, no one cut parts them."
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


def _scoring(manifest: Manifest) -> str:
    attribution = manifest.attribution
    rows = [
        ("method", attribution.method),
        ("samples", attribution.samples or "none: it looks at no data"),
        ("time", wording.duration(attribution.seconds)),
        *([] if attribution.steps is None else [("steps taken", attribution.steps)]),
        *((name, _setting(value)) for name, value in attribution.settings.items()),
    ]
    return (
        f"## How the heads were scored\n\n{table('ll', ['', ''], rows)}\n\n"
        f"{wording.ranking_sentence(manifest)}"
    )


def _setting(value: str | int | float | bool | tuple[str, ...] | None) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _data(manifest: Manifest) -> str:
    parts = (("calibration", manifest.calibration), ("validation", manifest.validation))
    rows = [(use, data.kind, data.n, len(data.skipped), data.identity[:12]) for use, data in parts]
    skipped = "\n\n".join(text for use, data in parts if (text := _skipped(use, data)))
    return "\n\n".join(
        part
        for part in (
            "## Data",
            table("llrrl", ["use", "kind", manifest.medium.many, "skipped", "digest"], rows),
            skipped,
        )
        if part
    )


def _skipped(use: str, data: DataSummary) -> str:
    if not data.skipped:
        return ""
    lines = [f"- {plain(clip.id)}: {plain(clip.reason)}" for clip in data.skipped[:NAMED_CLIPS]]
    rest = len(data.skipped) - NAMED_CLIPS
    if rest > 0:
        lines.append(f"- and {rest} more, named in manifest.json")
    return "\n".join([f"Skipped in {use}:", "", *lines])


def _steps(manifest: Manifest) -> str:
    rows = [(step, wording.duration(seconds)) for step, seconds in manifest.steps.items()]
    rows.append(("all", wording.duration(sum(manifest.steps.values()))))
    return f"## Steps\n\n{table('lr', ['step', 'time'], rows)}"


def _machine(manifest: Manifest) -> str:
    machine, model = manifest.machine, manifest.model
    rows = [
        ("model", model.source),
        ("revision", model.revision or "not pinned"),
        ("family", model.family),
        ("digest of weights and configuration", model.identity[:12]),
        ("device of scoring and pruning", manifest.device),
        ("seed", manifest.seed),
        ("processor", f"{machine.processor}, {machine.cores} cores"),
        ("memory", f"{machine.memory_gib:.0f} GiB"),
        ("GPU", machine.gpu or "none"),
        ("system", machine.system),
        *sorted(manifest.versions.items()),
    ]
    return f"## Model, machine and versions\n\n{table('ll', ['', ''], rows)}"


def _not_measured(manifest: Manifest) -> str:
    metric, medium = manifest.metric, manifest.medium
    limits = [
        f"Other data: the metric holds for the {metric.n} validation {medium.many}; other "
        f"{medium.variety} may give other figures.",
        "Retraining: the model was not trained after removal; training might win back a loss.",
        _ranking_limits(manifest),
        _latency_limits(manifest),
        "Memory in use, energy, and time to load the model.",
    ]
    return "\n".join(["## What was not measured", "", *(f"- {limit}" for limit in limits)])


def _ranking_limits(manifest: Manifest) -> str:
    samples = manifest.attribution.samples
    if not samples:
        method = plain(manifest.attribution.method)
        return (
            f"Other ways to score: {method} looks at no data (seed {manifest.seed}); methods that "
            "do may choose other heads."
        )
    return (
        f"Other calibration samples: the ranking rests on {wording.samples(samples)} and "
        f"seed {manifest.seed}."
    )


def _latency_limits(manifest: Manifest) -> str:
    if not manifest.latency:
        return "Latency: not measured at all."
    medium = manifest.medium
    values = sorted({f"{one.length.value:g}" for one in manifest.latency}, key=float)
    lengths = f"{wording.listing(values)} {SYMBOLS[medium.unit]}"
    settings = plain("; ".join(wording.by_setting(manifest.latency)))
    return (
        f"Other latencies: measured at {lengths} with {settings} on the machine above and "
        f"nowhere else; without {medium.preparation}."
    )


def _reproduction(manifest: Manifest, recipe_yaml: str) -> str:
    return "\n\n".join(
        [
            "## How to reproduce",
            fenced("hibprune run recipe.yaml", "sh"),
            "Put `recipe.yaml`, which lies beside this report, back where the recipe was: paths "
            f"in it start from its own directory. Device {plain(manifest.device)}, "
            f"seed {manifest.seed}. Latencies differ from machine to machine and run to run.",
            fenced(recipe_yaml, "yaml"),
        ]
    )
