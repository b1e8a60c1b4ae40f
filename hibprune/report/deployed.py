"""Sections of the report on the exported model: latency, size, agreement with PyTorch."""

from __future__ import annotations

from hibprune.records.manifest import Change, LatencySummary, Manifest, TimingSummary
from hibprune.records.medium import SYMBOLS, Medium
from hibprune.report import numbers, wording
from hibprune.report.markdown import plain, table


def latency_section(manifest: Manifest) -> str:
    """What was timed, how to read the picture, and a table for every setting."""
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
            *_work(manifest.latency),
        ]
    )


def _work(latency: tuple[LatencySummary, ...]) -> list[str]:
    """What the model is given to do beyond the length of the clip, in sentences."""
    sentences = []
    window, tokens = latency[0].window_seconds, latency[0].decoded_tokens
    if window is not None:
        sentences.append(
            f"The model fills every clip up to {window:g} s: shorter ones take as long, and the "
            "real-time factor holds for the length named alone."
        )
    if tokens is not None:
        sentences.append(
            f"Every transcript was of exactly {wording.counted_tokens(tokens)}, whatever they "
            "were: as many as a validation clip of median length has. Longer ones take a decoder "
            "step more for each; the step timed is the one halfway through."
        )
    return [" ".join(sentences)] if sentences else []


def _latency_table(group: list[LatencySummary], medium: Medium) -> str:
    timed = medium.unit == "seconds"
    factors = ["real-time factor"] if timed else []
    header = [medium.one, "model", "p50", "p90", "p99", *factors, "speed-up", "pairs"]
    rows: list[list[object]] = []
    for one in group:
        for part, times in (("", one), *((f", {part.part}", part) for part in one.parts)):
            rows += _rows(str(one.length), part, times, one.repetitions, timed)
    return table(f"ll{'r' * (len(header) - 2)}", header, rows)


def _rows(
    length: str, part: str, times: TimingSummary, repetitions: int, with_factor: bool
) -> list[list[object]]:
    speed_up = f"{times.ratio:.2f}× ({wording.ratio_interval(times)})"
    rows: list[list[object]] = []
    for model, one, ratio in (("original", times.before, ""), ("pruned", times.after, speed_up)):
        percentiles = [numbers.milliseconds(time) for time in (one.p50, one.p90, one.p99)]
        factor = "" if one.real_time_factor is None else f"{one.real_time_factor:.3g}"
        factors = [factor] if with_factor else []
        rows.append([length, f"{model}{part}", *percentiles, *factors, ratio, repetitions])
    return rows


def size_section(manifest: Manifest) -> str:
    """Bytes of the ONNX files, each by its name, parameters and multiply-adds."""
    graphs, parameters, macs = manifest.graph_bytes, manifest.parameters, manifest.macs
    several = len(graphs) > 1
    rows = [
        _megabytes_row("ONNX files" if several else "ONNX file", manifest.size_bytes),
        *(_megabytes_row(name, size) for name, size in graphs.items() if several),
        (
            "parameters",
            numbers.count(parameters.before),
            numbers.count(parameters.after),
            numbers.change(parameters.before, parameters.after),
        ),
        (
            f"multiply-adds, {wording.counted_work(macs)}",
            numbers.count(macs.before),
            numbers.count(macs.after),
            numbers.change(macs.before, macs.after),
        ),
    ]
    return f"## Size\n\n{table('lrrr', ['', 'original', 'pruned', 'change'], rows)}"


def _megabytes_row(label: str, size: Change) -> tuple[str, str, str, str]:
    return (
        label,
        numbers.megabytes(size.before),
        numbers.megabytes(size.after),
        numbers.change(size.before, size.after),
    )


def parity_section(manifest: Manifest) -> str:
    """How far every output of the ONNX files is from PyTorch's at most, and by what measure."""
    parity = manifest.parity
    verdict = "within" if parity.max_relative_diff <= parity.tolerance else "BEYOND"
    lengths = numbers.listing([f"{value:g}" for value in parity.lengths])
    batches = numbers.listing([str(batch) for batch in parity.batches])
    rows = [
        (
            one.output,
            f"{one.max_abs_diff:.1e}",
            numbers.three_digits(one.scale),
            f"{one.relative_diff:.1e}",
        )
        for one in parity.outputs
    ]
    header = ["output", "largest difference", "largest value", "share of it"]
    return "\n\n".join(
        [
            "## Parity",
            f"What the ONNX model gives out differs from what PyTorch does by at most "
            f"{parity.max_relative_diff:.1e} of the largest value, {verdict} the tolerance of "
            f"{parity.tolerance:.1e}; compared at {lengths} {SYMBOLS[parity.unit]}, batches of "
            f"{batches}. Of every output, where it is furthest:",
            table("lrrr", header, rows),
        ]
    )
