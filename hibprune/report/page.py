"""`report.md`: what was done, what it cost, what it gained, and what was not measured."""

from __future__ import annotations

from hibprune.records.manifest import DataSummary, Manifest
from hibprune.records.measurements import Gate
from hibprune.records.medium import SYMBOLS
from hibprune.records.units import Plan, Scores
from hibprune.report import numbers, wording
from hibprune.report.caveats import caveats
from hibprune.report.deployed import latency_section, parity_section, size_section
from hibprune.report.gates import (
    gate_interval,
    gate_number,
    gate_value,
    gate_verdict,
    gates_sentence,
)
from hibprune.report.heads import heads_section, scoring_section
from hibprune.report.markdown import fenced, plain, table
from hibprune.report.mix import mix_section
from hibprune.report.ranking import samples
from hibprune.report.recovery import recovery_section
from hibprune.report.repair import others_sections, ranks_section, repair_section
from hibprune.report.template import filled
from hibprune.report.transcripts import faults_table, transcripts_sentence
from hibprune.report.variants import (
    deployment_sentences,
    missing_sentences,
    speed_headings,
    variant_rows,
)

NAMED_CLIPS = 20


def report_markdown(
    manifest: Manifest, scores: Scores, plan: Plan, recipe_yaml: str, answers: str = ""
) -> str:
    """Write the report; pictures are referenced under `figures/` beside it.

    `answers` is its section on answers that changed, where there are answers to compare.
    """
    units = [heads_section(manifest, scores, plan), scoring_section(manifest)]
    return filled(
        "report.md.jinja",
        {
            "recipe": plain(manifest.recipe),
            "verdict": verdict(manifest),
            "variants": variants_table(manifest),
            "metric_name": numbers.capitalised(wording.metric_name(manifest.metric.name)),
            "metric": _metric(manifest),
            "transcripts": transcripts_sentence(manifest.metric.transcripts),
            "faults": faults_table(manifest.variants),
            "answers": answers,
            "latency": latency_section(manifest),
            "size": size_section(manifest),
            "judged": manifest.judged,
            "gates": _gates(manifest),
            "units": [
                mix_section(manifest, scores, plan),
                *units,
                *others_sections(manifest),
                repair_section(manifest),
                recovery_section(manifest),
                ranks_section(manifest),
            ],
            "parity": parity_section(manifest),
            "data": _data(manifest),
            "steps": _steps(manifest),
            "machine": _machine(manifest),
            "limits": _not_measured(manifest),
            "device": plain(manifest.device),
            "seed": manifest.seed,
            "recipe_yaml": fenced(recipe_yaml, "yaml"),
        },
    )


def verdict(manifest: Manifest) -> list[str]:
    """What came out, in paragraphs of Markdown: metric, what to deploy, speed, size, gates."""
    metric = wording.metric_sentence(manifest)
    return [
        f"**{wording.heads_sentence(manifest)}** {metric}",
        plain(" ".join([*missing_sentences(manifest), *deployment_sentences(manifest)])),
        wording.speed_sentences(manifest.held),
        wording.size_sentence(manifest),
        plain(gates_sentence(manifest.gates)),
        *(f"**{plain(sentence)}**" for sentence in caveats(manifest)),
        "Ranges in parentheses are 95 % intervals.",
    ]


def variants_table(manifest: Manifest) -> str:
    """A row for every variant that was measured, in Markdown."""
    rows = [
        (
            one.name,
            one.done,
            f"{one.metric} ({one.interval})",
            one.size,
            *(
                f"{speed} ({interval})" if interval else speed
                for speed, interval in zip(one.speeds, one.speed_intervals, strict=True)
            ),
        )
        for one in variant_rows(manifest)
    ]
    name = numbers.capitalised(wording.metric_name(manifest.metric.name))
    speeds = [f"speed, {one}" for one in speed_headings(manifest)]
    header = ["variant", "what was done", name, "ONNX", *speeds]
    return table("ll" + "r" * (len(header) - 2), header, rows)


def _metric(manifest: Manifest) -> str:
    original, metric = manifest.original, manifest.metric
    rows: list[list[object]] = [
        [
            one.name,
            numbers.percent(one.metric.value, numbers.metric_decimals(metric.n)),
            wording.percent_interval(one.metric.interval, metric.n),
            metric.n,
            ""
            if one is original
            else wording.metric_finding(original.metric, one.metric, one.change, manifest.medium),
        ]
        for one in manifest.variants
    ]
    name = wording.metric_name(metric.name)
    aim = "higher" if metric.higher_is_better else "lower"
    measured = manifest.medium.many
    header = ["variant", f"{name} ({aim} is better)", "95 % interval", measured, "finding"]
    return table("lrrrl", header, rows)


def _gates(manifest: Manifest) -> str:
    if not manifest.gates:
        return ""
    rows = [_gate_row(gate) for gate in manifest.gates]
    header = ["gate", "limit", "measured", "95 % interval", "verdict"]
    return table("lrrrl", header, rows)


def _gate_row(gate: Gate) -> tuple[str, ...]:
    return (
        gate.name,
        gate_number(gate.limit),
        gate_value(gate),
        gate_interval(gate),
        gate_verdict(gate),
    )


def _data(manifest: Manifest) -> list[str]:
    parts = [("calibration", manifest.calibration), ("validation", manifest.validation)]
    if manifest.recovery is not None:
        parts.append(("recovery", manifest.recovery.data))
    rows = [(use, data.kind, data.n, len(data.skipped), data.identity[:12]) for use, data in parts]
    header = ["use", "kind", manifest.medium.many, "skipped", "digest"]
    return [table("llrrl", header, rows), *(_skipped(use, data) for use, data in parts)]


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
    return table("lr", ["step", "time"], rows)


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
        ("instructions for int8 and fp16", ", ".join(machine.instruction_set) or "not known"),
        ("memory", f"{machine.memory_gib:.0f} GiB"),
        ("GPU", ", driver ".join(filter(None, (machine.gpu, machine.gpu_driver))) or "none"),
        ("system", machine.system),
        *sorted(manifest.versions.items()),
    ]
    return table("ll", ["", ""], rows)


def _not_measured(manifest: Manifest) -> list[str]:
    metric, medium = manifest.metric, manifest.medium
    return [
        f"Other data: the metric holds for the {metric.n} validation {medium.many}; other "
        f"{medium.variety} may give other figures.",
        *(
            ["Retraining on labels: the pruned model saw none; training might win back a loss."]
            if manifest.recovery is None
            else []
        ),
        _ranking_limits(manifest),
        _latency_limits(manifest),
        "Memory in use, energy, and time to load the model.",
    ]


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
    latency = manifest.original.latency
    if not latency:
        return "Latency: not measured at all."
    medium = manifest.medium
    values = sorted({f"{one.length.value:g}" for one in latency}, key=float)
    lengths = f"{numbers.listing(values)} {SYMBOLS[medium.unit]}"
    settings = plain("; ".join(wording.by_setting(latency)))
    return (
        f"Other latencies: measured at {lengths} with {settings} on the machine above and "
        f"nowhere else; without {medium.preparation}."
    )
