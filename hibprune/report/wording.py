"""Numbers and findings as people write them; one wording for report, card and terminal."""

from __future__ import annotations

from collections.abc import Sequence

from hibprune.records.base import Interval
from hibprune.records.manifest import (
    SPEEDUP,
    AttributionSummary,
    LatencySummary,
    Manifest,
    MetricSummary,
    TimingSummary,
)
from hibprune.records.measurements import AtWork, Gate, Measurement
from hibprune.records.medium import SOUND, Medium

MINUS = "−"
WITHIN_NOISE = "within the noise of the measurement"


def percent(fraction: float, decimals: int) -> str:
    """`0.961` as `96.1 %`."""
    return f"{100 * fraction:.{decimals}f} %"


def metric_decimals(n: int) -> int:
    """Decimals of a percentage over `n` inputs: a second one says something from 1000 clips on."""
    return 2 if n >= 1000 else 1


def metric_name(name: str) -> str:
    """`wer` as `WER`, `slot_accuracy` as `slot accuracy`."""
    return name.upper() if name in {"wer", "cer"} else name.replace("_", " ")


def percent_interval(interval: Interval, n: int) -> str:
    """A metric's interval as `94.3–97.4`, in percent."""
    decimals = metric_decimals(n)
    return f"{100 * interval.low:.{decimals}f}–{100 * interval.high:.{decimals}f}"


def measurement(result: Measurement) -> str:
    """A metric with its interval: `96.1 % (94.3–97.4)`."""
    value = percent(result.value, metric_decimals(result.n))
    return f"{value} ({percent_interval(result.interval, result.n)})"


def points(difference: float, n: int) -> str:
    """A difference of two metrics in percentage points, with its sign."""
    decimals = metric_decimals(n)
    size = f"{100 * abs(difference):.{decimals}f}"
    if float(size) == 0:
        return f"{size} points"
    return f"{'+' if difference > 0 else MINUS}{size} points"


def three_digits(number: float) -> str:
    """Three significant digits, never a power of ten: `7.18`, `55.2`, `185`."""
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def milliseconds(time: float) -> str:
    """A latency with its unit."""
    return f"{three_digits(time)} ms"


def megabytes(size_bytes: int) -> str:
    """A file size in MB of 10⁶ bytes."""
    return f"{three_digits(size_bytes / 1e6)} MB"


def count(number: int) -> str:
    """Parameters or multiply-adds: `94.4 M`, `3.02 M`, `1.23 G`."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999 700 rounds to 1.00 M, not to 1000 k.
        if number >= 0.9995 * scale:
            return f"{three_digits(number / scale)} {unit}"
    return str(number)


def change(before: float, after: float) -> str:
    """Relative change in percent, signed; a dash where there is nothing to relate to."""
    if before == 0:
        return "–"
    share = 100 * (after - before) / before
    if round(share) == 0 and share != 0:
        return f"{MINUS if share < 0 else '+'}{abs(share):.1f} %"
    return f"{MINUS if share < 0 else '+' if share > 0 else ''}{abs(share):.0f} %"


def duration(seconds: float) -> str:
    """`4.2 s`, `2 min 13 s`, `1 h 5 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def listing(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def overlap(first: Interval, second: Interval) -> bool:
    """Whether two intervals share a value."""
    return first.low <= second.high and second.low <= first.high


def within_noise(before: Measurement, after: Measurement, paired: Interval | None) -> bool:
    """Whether no change at all is within `paired`, the 95 % interval of the change.

    Where that is not known, whether the two intervals overlap.
    """
    if paired is None:
        return overlap(before.interval, after.interval)
    return paired.low <= 0 <= paired.high


def metric_finding(
    before: Measurement, after: Measurement, paired: Interval | None, medium: Medium = SOUND
) -> str:
    """What the change of a metric amounts to, judged on what both models were given."""
    given = medium.counted(after.n)
    if before.value == after.value:
        return f"the same value on {given}"
    gain = after.value - before.value
    if not after.higher_is_better:
        gain = -gain
    size = points(gain, after.n).lstrip(f"+{MINUS}")
    direction = "better" if gain > 0 else "worse"
    if within_noise(before, after, paired):
        return f"{size} {direction}, within the noise of {given}"
    return f"{size} {direction}, more than the noise of {given} explains"


def metric_sentence(metric: MetricSummary, medium: Medium = SOUND) -> str:
    """Baseline, pruned and exported metric with intervals, and what the change amounts to."""
    name = metric_name(metric.name)
    aim = "higher" if metric.higher_is_better else "lower"
    finding = metric_finding(metric.baseline, metric.pruned, metric.pruned_change, medium)
    sentence = (
        f"{name[0].upper()}{name[1:]} ({aim} is better) went from {measurement(metric.baseline)} "
        f"to {measurement(metric.pruned)}: {finding}."
    )
    if metric.exported.value == metric.pruned.value:
        return f"{sentence} The exported ONNX model scores the same as the pruned one."
    finding = metric_finding(metric.baseline, metric.exported, metric.exported_change, medium)
    return (
        f"{sentence} The exported ONNX model scores {measurement(metric.exported)}; "
        f"against the original that is {finding}."
    )


def ratio_interval(latency: TimingSummary) -> str:
    """The interval of the speed-up: `1.28–1.34`."""
    return f"{latency.ratio_interval.low:.2f}–{latency.ratio_interval.high:.2f}"


def speed_changed(latency: TimingSummary) -> bool:
    """Whether the interval of the ratio leaves out 1.

    Judged on the digits that are printed: an interval shown as 1.00–1.01 is no speed-up.
    """
    low, high = latency.ratio_interval
    return round(low, 2) > 1 or round(high, 2) < 1


def speed_finding(latency: LatencySummary) -> str:
    """How many times as fast, or that there is no measurable speed-up, with the interval."""
    ratio, interval = f"{latency.ratio:.2f}×", ratio_interval(latency)
    if not speed_changed(latency):
        return f"no measurable speed-up ({ratio}, {interval})"
    slower = "slower: " if latency.ratio < 1 else ""
    return f"{slower}{ratio} as fast ({interval})"


def latency_setting(latency: LatencySummary) -> str:
    """Under what it was measured: `onnxruntime, CPUExecutionProvider, 2 threads, batch 1`."""
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    setting = f"{latency.runtime}, {latency.provider}, {threads}, batch {latency.batch}"
    return ", ".join([setting, *work(latency)])


def work(given: AtWork) -> list[str]:
    """What a model is given to do beyond the length of its input: `30 s window`, `24 tokens`."""
    return [
        *([] if given.window_seconds is None else [f"{given.window_seconds:g} s window"]),
        *([] if given.decoded_tokens is None else [counted_tokens(given.decoded_tokens)]),
    ]


def counted_tokens(number: int) -> str:
    """`1 token`, `24 tokens`."""
    return "1 token" if number == 1 else f"{number} tokens"


def counted_work(given: AtWork) -> str:
    """What multiply-adds are counted for: `5 s of sound`, `a 30 s window and 24 tokens`."""
    heard = given.length.of_medium
    if given.window_seconds is not None:
        heard = f"a {given.window_seconds:g} s window"
    said = "" if given.decoded_tokens is None else f" and {counted_tokens(given.decoded_tokens)}"
    return heard + said


def by_setting(latency: Sequence[LatencySummary]) -> dict[str, list[LatencySummary]]:
    """Latencies grouped by what they were measured under, in order of first appearance."""
    groups: dict[str, list[LatencySummary]] = {}
    for one in latency:
        groups.setdefault(latency_setting(one), []).append(one)
    return groups


def speed_sentences(latency: Sequence[LatencySummary]) -> str:
    """One sentence per setting with the finding at every length."""
    if not latency:
        return "Latency was not measured."
    sentences = []
    for setting, group in by_setting(latency).items():
        findings = [f"{speed_finding(one)} at {one.length}" for one in group]
        sentences.append(f"Speed against the original ({setting}): {', '.join(findings)}.")
    return " ".join(sentences)


def heads_sentence(manifest: Manifest) -> str:
    """How many heads went of how many, what rounding took from the budget, and what stays."""
    heads = manifest.heads
    if heads.removed_count == 0:
        return f"None of the {heads.total} attention heads was removed."
    verb = "was" if heads.removed_count == 1 else "were"
    share = percent(heads.removed_count / heads.total, 0)
    rounding = heads.budget.rounding(heads.removed_count) if heads.budget else None
    stays = " Their mean output stays, in biases." if heads.left == "mean" else ""
    return (
        f"{heads.removed_count} of {heads.total} attention heads ({share}) {verb} removed"
        f"{f': {rounding}' if rounding else ''}.{stays}"
    )


def size_sentence(manifest: Manifest) -> str:
    """ONNX file, parameters and multiply-adds, before and after."""
    size, parameters, macs = manifest.size_bytes, manifest.parameters, manifest.macs
    files = "The ONNX files" if len(manifest.graph_bytes) > 1 else "The ONNX file"
    return (
        f"{files} went from {megabytes(size.before)} to {megabytes(size.after)} "
        f"({change(size.before, size.after)}), parameters from {count(parameters.before)} to "
        f"{count(parameters.after)}, multiply-adds for {counted_work(macs)} from "
        f"{count(macs.before)} to {count(macs.after)}."
    )


def gates_sentence(gates: Sequence[Gate]) -> str:
    """Whether every gate passed; those that failed are named, and those that were close calls."""
    if not gates:
        return "No gates were set."
    failed = [gate.name for gate in gates if not gate.passed]
    if failed:
        verdict = f"{len(failed)} of {len(gates)} gates FAILED: {listing(failed)}."
    else:
        verdict = "The gate passed." if len(gates) == 1 else f"All {len(gates)} gates passed."
    close = [gate.name for gate in gates if gate.within_noise]
    if not close:
        return verdict
    return f"{verdict} {WITHIN_NOISE.capitalize()}: {listing(close)}."


def gate_value(gate: Gate) -> str:
    """What a gate was judged on: `0.0023`, `1.15 (ratio of medians)`."""
    return gate_number(gate.value) + (" (ratio of medians)" if gate.name == SPEEDUP else "")


def gate_interval(gate: Gate) -> str:
    """The 95 % interval of what a gate was judged on, `1.13 to 1.17`; a dash where it has none."""
    return "–" if gate.interval is None else " to ".join(map(gate_number, gate.interval))


def gate_number(number: float) -> str:
    """A limit or what is held against it, in the unit the recipe gives limits in."""
    # A drop of nothing is a zero with a sign.
    return f"{number + 0.0:.4g}".replace("-", MINUS)


def gate_failure(gate: Gate) -> str:
    """A failed gate in a line: the limit, what was measured, and whether it is a close call."""
    close = f", {WITHIN_NOISE} ({gate_interval(gate)})" if gate.within_noise else ""
    return f"{gate.name}: limit {gate_number(gate.limit)}, measured {gate_value(gate)}{close}"


def score_label(manifest: Manifest) -> str:
    """What a head's score is: `hib score (similarity), mean over 200 samples`."""
    attribution = manifest.attribution
    kind = attribution.settings.get("score")
    name = f"{attribution.method} score" + (f" ({kind})" if kind else "")
    if len(manifest.rounds) > 1:
        name = f"{name} of the head's last round"
    # Without a split-half correlation there are too few samples, or no scores of single ones.
    if attribution.split_half is None:
        return name
    return f"{name}, mean over {attribution.samples} samples"


def scored_by(attribution: AttributionSummary) -> str:
    """The method and what it looked at: `hib on 200 samples`."""
    if not attribution.samples:
        return f"{attribution.method}, which looks at no data"
    return f"{attribution.method} on {samples(attribution.samples)}"


def samples(number: int) -> str:
    """`1 sample`, `200 samples`."""
    return f"{number} {'sample' if number == 1 else 'samples'}"


def ranking_sentence(manifest: Manifest) -> str:
    """What the split-half correlation says about the ranking, and what it does not."""
    attribution = manifest.attribution
    split_half = attribution.split_half
    if split_half is None:
        if not attribution.samples:
            reason = f"{attribution.method} looks at no data"
        elif attribution.samples < 4:
            reason = "it takes four samples"
        else:
            reason = f"{attribution.method} scores all samples together, not one by one"
        return f"There is no split-half correlation: {reason}."
    if split_half >= 0.9:
        reading = "other samples of the same kind would give nearly the same ranking"
    elif split_half >= 0.7:
        reading = "the coarse ranking is settled, heads near the cut may swap with other samples"
    else:
        reading = (
            "the ranking depends much on which samples were drawn: use more, "
            "or read the choice of heads as partly chance"
        )
    first = " in the first round" if len(manifest.rounds) > 1 else ""
    return (
        f"Split-half rank correlation {split_half:.2f}{first}: {reading}. It speaks of the "
        "ranking's stability; whether the ranking is a good one, the metric after removal says."
    )
