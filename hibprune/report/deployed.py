"""Sections of the report on exported models: latency, size, agreement with PyTorch and fp32."""

from __future__ import annotations

from collections.abc import Sequence

from hibprune.records.manifest import Manifest
from hibprune.records.medium import SYMBOLS
from hibprune.records.variants import ORIGINAL, Timing, Variant, VariantLatency
from hibprune.report import numbers, wording
from hibprune.report.markdown import plain, table


def latency_section(manifest: Manifest) -> str:
    """What was timed, how to read the picture, and a table of all variants."""
    latency = manifest.original.latency
    if not latency:
        return "## Latency\n\nLatency was not measured."
    timed = manifest.medium.unit == "seconds"
    setting = "; ".join(wording.by_setting(latency))
    return "\n\n".join(
        [
            "## Latency",
            "![Latency of every variant](figures/latency.png)",
            f"*How to read it: a bar is the median time for one {manifest.medium.one}, the whisker "
            "reaches to the 90th percentile. Every length has a scale of its own, from zero. "
            "Behind a bar: how many times as fast as the original, with its 95 % interval.*",
            f"{plain(setting)}:\n\n{_latency_table(manifest.variants, timed)}",
            "All variants were ONNX models, run in turn in one process, round by round."
            + (" Real-time factor: median time divided by the clip's length." if timed else ""),
            *_work(latency),
        ]
    )


def _work(latency: Sequence[VariantLatency]) -> list[str]:
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


def _latency_table(variants: Sequence[Variant], timed: bool) -> str:
    factors = ["real-time factor"] if timed else []
    header = ["input", "variant", "p50", "p90", "p99", *factors, "speed-up", "rounds"]
    rows: list[list[object]] = []
    for place, length in enumerate(variants[0].latency):
        for variant in variants:
            one = variant.latency[place]
            for part, times in (("", one), *((f", {part.part}", part) for part in one.parts)):
                name = f"{variant.name}{part}"
                rows.append(_row(str(length.length), name, times, one.repetitions, timed))
    return table(f"ll{'r' * (len(header) - 2)}", header, rows)


def _row(
    length: str, name: str, timing: Timing, repetitions: int, with_factor: bool
) -> list[object]:
    times = timing.times
    percentiles = [numbers.milliseconds(time) for time in (times.p50, times.p90, times.p99)]
    factor = "" if times.real_time_factor is None else f"{times.real_time_factor:.3g}"
    first = name.partition(",")[0] == ORIGINAL
    speed_up = "" if first else f"{timing.ratio:.2f}× ({wording.ratio_interval(timing)})"
    return [length, name, *percentiles, *([factor] if with_factor else []), speed_up, repetitions]


def size_section(manifest: Manifest) -> str:
    """Bytes of the ONNX files, each by its name, parameters and multiply-adds."""
    original = manifest.original
    rows: list[list[object]] = []
    for one in manifest.variants:
        parts = " + ".join(
            f"{file.name.partition('_')[0]} {numbers.megabytes(file.size_bytes)}"
            for file in one.files
        )
        rows.append(
            [
                one.name,
                numbers.megabytes(one.size_bytes),
                numbers.change(original.size_bytes, one.size_bytes) if one is not original else "",
                parts if len(one.files) > 1 else one.files[0].path or "not left",
                numbers.count(one.parameters),
                numbers.count(one.macs),
            ]
        )
    work = f"multiply-adds, {wording.counted_work(manifest.counted_work)}"
    header = ["variant", "ONNX", "change", "files", "parameters", work]
    return f"## Size\n\n{table('lrrlrr', header, rows)}"


def parity_section(manifest: Manifest) -> str:
    """How far fp32 graphs are from PyTorch, and lower precisions from the fp32 they came from."""
    exact = [one for one in manifest.variants if one.parity is not None]
    lower = [one for one in manifest.variants if one.agreement is not None]
    return "\n\n".join(
        ["## Agreement", *map(_parity, exact), *([_agreements(lower)] if lower else [])]
    )


def _parity(variant: Variant) -> str:
    parity = variant.parity
    assert parity is not None
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
    return (
        f"What the graphs of {variant.name} give out differs from what PyTorch does by at most "
        f"{parity.max_relative_diff:.1e} of the largest value, {verdict} the tolerance of "
        f"{parity.tolerance:.1e}; compared at {lengths} {SYMBOLS[parity.unit]}, batches of "
        f"{batches}. Of every output, where it is furthest:\n\n{table('lrrr', header, rows)}"
    )


def _agreements(variants: Sequence[Variant]) -> str:
    rows = []
    for one in variants:
        agreement = one.agreement
        assert agreement is not None
        far = agreement.relative_diff
        in_float = (*one.in_float, *(one.guard.in_float if one.guard else ()))
        rows.append(
            (
                one.name,
                one.parent or "",
                f"{agreement.equal:.1%} of {agreement.n}",
                "–" if far is None else f"{far:.1%}",
                ", ".join(in_float) or "nothing",
            )
        )
    header = ["variant", "made from", "equal predictions", "largest difference", "left in float32"]
    return (
        "Lower precisions against the fp32 they were made from; the largest difference of outputs "
        f"is a share of the largest output:\n\n{table('llrrl', header, rows)}"
    )
