"""`report.md`: what was done, what it cost, what it gained, and what was not measured."""

from __future__ import annotations

from hibprune.records.manifest import DataSummary, LatencySummary, Manifest
from hibprune.records.measurements import Gate, Measurement
from hibprune.records.medium import SYMBOLS, Medium
from hibprune.records.units import Plan, Scores
from hibprune.report import numbers, wording
from hibprune.report.caveats import caveats
from hibprune.report.gates import (
    gate_interval,
    gate_number,
    gate_value,
    gate_verdict,
    gates_sentence,
)
from hibprune.report.heads import heads_section, scoring_section
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.ranking import samples

NAMED_CLIPS = 20


def report_markdown(manifest: Manifest, scores: Scores, plan: Plan, recipe_yaml: str) -> str:
    """Write the report; pictures are referenced under `figures/` beside it."""
    sections = [
        f"# Pruning report: {plain(manifest.recipe)}",
        _verdict(manifest),
        _metric(manifest),
        _latency(manifest),
        _size(manifest),
        _gates(manifest),
        heads_section(manifest, scores, plan),
        scoring_section(manifest),
        _parity(manifest),
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
        plain(gates_sentence(manifest.gates)),
        *(f"**{plain(sentence)}**" for sentence in caveats(manifest)),
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
    return f"## {numbers.capitalised(name)}\n\n{table('lrrrl', header, rows)}"


def _metric_row(model: str, result: Measurement, finding: str) -> list[object]:
    value = numbers.percent(result.value, numbers.metric_decimals(result.n))
    return [model, value, wording.percent_interval(result.interval, result.n), result.n, finding]


def _latency(manifest: Manifest) -> str:
    if not manifest.latency:
        return "## Latency\n\nLatency was not measured."
    timed = manifest.medium.unit == "seconds"
    tables = [
        f"{plain(setting)}:\n\n{_latency_table(group, manifest.medium)}"
        for setting, group in wording.by_setting(manifest.latency).items()
    ]
    return "\n\n".join(
        [
            "## Latency",
            "![Latency of the original and the pruned model](figures/latency.png)",
            f"*How to read it: a bar is the median time for one {manifest.medium.one}, the whisker "
            "reaches to the 90th percentile. Every length has a scale of its own, from zero. "
            "Beside the length: how many times as fast the pruned model is, with its 95 % "
            "interval.*",
            *tables,
            "Original and pruned were both ONNX models, run in turn in one process."
            + (" Real-time factor: median time divided by the clip's length." if timed else ""),
        ]
    )


def _latency_table(group: list[LatencySummary], medium: Medium) -> str:
    timed = medium.unit == "seconds"
    factors = ["real-time factor"] if timed else []
    header = [medium.one, "model", "p50", "p90", "p99", *factors, "speed-up", "pairs"]
    rows: list[list[object]] = []
    for one in group:
        speed_up = f"{one.ratio:.2f}× ({wording.ratio_interval(one)})"
        for model, times, ratio in (("original", one.before, ""), ("pruned", one.after, speed_up)):
            percentiles = [numbers.milliseconds(time) for time in (times.p50, times.p90, times.p99)]
            factors = [f"{times.real_time_factor:.3g}"] if timed else []
            rows.append([one.length, model, *percentiles, *factors, ratio, one.repetitions])
    return table(f"ll{'r' * (len(header) - 2)}", header, rows)


def _size(manifest: Manifest) -> str:
    parameters, macs, size = manifest.parameters, manifest.macs, manifest.size_bytes
    rows = [
        (
            "ONNX file",
            numbers.megabytes(size.before),
            numbers.megabytes(size.after),
            numbers.change(size.before, size.after),
        ),
        (
            "parameters",
            numbers.count(parameters.before),
            numbers.count(parameters.after),
            numbers.change(parameters.before, parameters.after),
        ),
        (
            f"multiply-adds, {macs.length.of_medium}",
            numbers.count(macs.before),
            numbers.count(macs.after),
            numbers.change(macs.before, macs.after),
        ),
    ]
    return f"## Size\n\n{table('lrrr', ['', 'original', 'pruned', 'change'], rows)}"


def _gates(manifest: Manifest) -> str:
    if not manifest.gates:
        return "## Gates\n\nNo gates were set."
    rows = [_gate_row(gate) for gate in manifest.gates]
    header = ["gate", "limit", "measured", "95 % interval", "verdict"]
    return f"## Gates\n\n{table('lrrrl', header, rows)}"


def _gate_row(gate: Gate) -> tuple[str, ...]:
    return (
        gate.name,
        gate_number(gate.limit),
        gate_value(gate),
        gate_interval(gate),
        gate_verdict(gate),
    )


def _parity(manifest: Manifest) -> str:
    parity = manifest.parity
    verdict = "within" if parity.max_abs_diff <= parity.tolerance else "BEYOND"
    lengths = numbers.listing([f"{value:g}" for value in parity.lengths])
    lengths = f"{lengths} {SYMBOLS[parity.unit]}"
    batches = numbers.listing([str(batch) for batch in parity.batches])
    return (
        "## Parity\n\n"
        f"Logits of the ONNX file and of PyTorch differ by at most {parity.max_abs_diff:.1e}, "
        f"{verdict} the tolerance of {parity.tolerance:.1e}; compared at {lengths}, "
        f"batches of {batches}."
    )


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
    rows = [(step, numbers.duration(seconds)) for step, seconds in manifest.steps.items()]
    rows.append(("all", numbers.duration(sum(manifest.steps.values()))))
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
    number = manifest.attribution.samples
    if not number:
        method = plain(manifest.attribution.method)
        return (
            f"Other ways to score: {method} looks at no data (seed {manifest.seed}); methods that "
            "do may choose other heads."
        )
    return (
        f"Other calibration samples: the ranking rests on {samples(number)} and "
        f"seed {manifest.seed}."
    )


def _latency_limits(manifest: Manifest) -> str:
    if not manifest.latency:
        return "Latency: not measured at all."
    medium = manifest.medium
    values = sorted({f"{one.length.value:g}" for one in manifest.latency}, key=float)
    lengths = f"{numbers.listing(values)} {SYMBOLS[medium.unit]}"
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
