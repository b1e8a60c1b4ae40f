"""Findings on metric, speed, size and heads in words; the same for report, card and terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from hibprune.records.base import Interval
from hibprune.records.comparison import Estimate
from hibprune.records.manifest import Manifest
from hibprune.records.measurements import AtWork, Measurement
from hibprune.records.medium import SOUND, Medium
from hibprune.records.units import Pool, pool_words
from hibprune.records.variants import Timing, Variant, VariantLatency
from hibprune.report.numbers import (
    MINUS,
    capitalised,
    change,
    count,
    counted,
    listing,
    megabytes,
    metric_decimals,
    percent,
    points,
)

NAMED: Mapping[Pool, str] = {
    "neuron": "neurons of the feed-forwards",
    "channel": "channels of the front end",
    "decoder_neuron": "neurons of the decoder's feed-forwards",
    "decoder_head": "heads of the decoder's self-attention",
    "cross_head": "heads of the decoder's cross-attention",
}
"""What goes beside heads."""
SERIOUS = 0.25
"""A rise of the errors by this share is never called noise."""

Finding = Literal["no change", "within noise", "unconfirmed", "beyond noise"]


def metric_name(name: str) -> str:
    """`wer` as `WER`, `slot_accuracy` as `slot accuracy`."""
    return name.upper() if name in {"wer", "cer"} else name.replace("_", " ")


def percent_interval(interval: Interval, n: int) -> str:
    """A metric's interval as `94.3–97.4`, in percent."""
    decimals = metric_decimals(n)
    return f"{100 * interval.low:.{decimals}f}–{100 * interval.high:.{decimals}f}"


def percent_estimate(estimate: Estimate) -> str:
    """A share with its interval: "97.2 % (95.1 to 98.6)"."""
    low, high = (100 * end for end in estimate.interval)
    return f"{100 * estimate.value:.1f} % ({low:.1f} to {high:.1f})"


def measurement(result: Measurement) -> str:
    """A metric with its interval: `96.1 % (94.3–97.4)`."""
    value = percent(result.value, metric_decimals(result.n))
    return f"{value} ({percent_interval(result.interval, result.n)})"


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


def change_finding(before: Measurement, after: Measurement, paired: Interval | None) -> Finding:
    """Whether a change is noise; a loss too large to be passed over is unconfirmed instead."""
    if before.value == after.value:
        return "no change"
    if not within_noise(before, after, paired):
        return "beyond noise"
    return "unconfirmed" if _is_serious(before, after) else "within noise"


def _is_serious(before: Measurement, after: Measurement) -> bool:
    loss = -_gain(before, after)
    return loss > 0 and loss >= SERIOUS * _error_rate(before) - 1e-12


def _gain(before: Measurement, after: Measurement) -> float:
    gain = after.value - before.value
    return gain if after.higher_is_better else -gain


def _error_rate(result: Measurement) -> float:
    return 1 - result.value if result.higher_is_better else result.value


def possible_loss(paired: Interval | None, higher_is_better: bool) -> float:
    """How large a loss the data cannot rule out: the bad end of the interval of the change.

    0 where any loss is ruled out, or nothing is known of the change.
    """
    if paired is None:
        return 0.0
    return max(0.0, -paired.low if higher_is_better else paired.high)


def metric_finding(
    before: Measurement, after: Measurement, paired: Interval | None, medium: Medium = SOUND
) -> str:
    """What the change of a metric amounts to, judged on what both models were given."""
    given = medium.counted(after.n)
    gain = _gain(before, after)
    size = points(gain, after.n).lstrip(f"+{MINUS}")
    found = f"{size} {'better' if gain > 0 else 'worse'}"
    finding = change_finding(before, after, paired)
    if finding == "no change":
        found = f"the same value on {given}"
    elif finding == "beyond noise":
        found += f", more than the noise of {given} explains"
    elif finding == "within noise":
        found += f", within the noise of {given}"
    elif _error_rate(before) == 0:
        found += f" where there was no error, which {given} cannot confirm"
    else:
        more = percent(-gain / _error_rate(before), 0)
        found += f", {more} more errors, which {given} cannot confirm"
    loss = possible_loss(paired, after.higher_is_better)
    if loss == 0:
        return found
    return f"{found}; a loss of up to {_loss(loss, after.n)} cannot be ruled out"


def _loss(loss: float, n: int) -> str:
    return points(loss, n).lstrip("+")


def loss_sentence(manifest: Manifest) -> str | None:
    """How large a loss the data cannot rule out, of the variant that the gates hold."""
    held, metric = manifest.held, manifest.metric
    loss = possible_loss(held.change, metric.higher_is_better)
    if held.change is None or loss == 0:
        return None
    name = metric_name(metric.name)
    return f"A loss of up to {_loss(loss, metric.n)} of {name} cannot be ruled out for {held.name}."


def metric_sentence(manifest: Manifest) -> str:
    """The metric of the original and of the variant that the gates hold, and what changed."""
    original, held, metric = manifest.original, manifest.held, manifest.metric
    name = metric_name(metric.name)
    aim = "higher" if metric.higher_is_better else "lower"
    finding = metric_finding(original.metric, held.metric, held.change, manifest.medium)
    return (
        f"{capitalised(name)} ({aim} is better) went from {measurement(original.metric)} "
        f"to {measurement(held.metric)} ({held.name}): {finding}."
    )


def ratio_interval(latency: Timing) -> str:
    """The interval of the speed-up: `1.28–1.34`."""
    return f"{latency.ratio_interval.low:.2f}–{latency.ratio_interval.high:.2f}"


def speed_changed(latency: Timing) -> bool:
    """Whether the interval of the ratio leaves out 1.

    Judged on the digits that are printed: an interval shown as 1.00–1.01 is no speed-up.
    """
    low, high = latency.ratio_interval
    return round(low, 2) > 1 or round(high, 2) < 1


def speed_finding(latency: VariantLatency) -> str:
    """How many times as fast, or that there is no measurable speed-up, with the interval."""
    ratio, interval = f"{latency.ratio:.2f}×", ratio_interval(latency)
    if not speed_changed(latency):
        return f"no measurable speed-up ({ratio}, {interval})"
    slower = "slower: " if latency.ratio < 1 else ""
    return f"{slower}{ratio} as fast ({interval})"


def latency_setting(latency: VariantLatency) -> str:
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


def by_setting(latency: Sequence[VariantLatency]) -> dict[str, list[VariantLatency]]:
    """Latencies grouped by what they were measured under, in order of first appearance."""
    groups: dict[str, list[VariantLatency]] = {}
    for one in latency:
        groups.setdefault(latency_setting(one), []).append(one)
    return groups


def speed_sentences(variant: Variant) -> str:
    """One sentence per setting with the finding at every length."""
    if not variant.latency:
        return "Latency was not measured."
    sentences = []
    for setting, group in by_setting(variant.latency).items():
        findings = [f"{speed_finding(one)} at {one.length}" for one in group]
        sentences.append(
            f"Speed of {variant.name} against the original ({setting}): {', '.join(findings)}."
        )
    return " ".join(sentences)


def heads_sentence(manifest: Manifest) -> str:
    """How many heads went of how many, what rounding took from the budget, and what stays."""
    heads = manifest.heads
    if heads.removed_count == 0:
        # A model that generates has a decoder with heads of its own.
        own = "" if manifest.generation is None else "encoder's "
        none = f"None of the {own}{heads.total} attention heads was removed."
        return none + others_sentence(manifest)
    verb = "was" if heads.removed_count == 1 else "were"
    share = percent(heads.removed_count / heads.total, 0)
    rounding = heads.budget.rounding(heads.removed_count) if heads.budget else None
    return (
        f"{heads.removed_count} of {heads.total} attention heads ({share}) {verb} removed"
        f"{f': {rounding}' if rounding else ''}.{others_sentence(manifest)}"
    )


def means(manifest: Manifest) -> str:
    """What made a model smaller: `removing attention heads and neurons, factoring projections`."""
    gone = ["attention heads"] if manifest.heads.removed_count else []
    gone += [pool_words(pool) for pool, one in manifest.others.items() if one.removed_count]
    factored = manifest.ranks is not None and manifest.ranks.factored
    removing = [f"removing {listing(gone)}"] if gone or not factored else []
    return " and ".join([*removing, *(["factoring projections"] if factored else [])])


def others_sentence(manifest: Manifest) -> str:
    """How many other units went, and what was done with the weights that stay; begins with a space.

    Empty where none went and nothing was done.
    """
    repair, went = manifest.repair, ""
    for pool, units in manifest.others.items():
        verb = "was" if units.removed_count == 1 else "were"
        share = percent(units.removed_count / units.total, 0)
        went += f" Of {units.total} {NAMED[pool]} {units.removed_count} {verb} removed ({share})."
    went += ranks_sentence(manifest)
    if repair is None or not repair.sublayers:
        return went
    clips = manifest.medium.counted(repair.clips + repair.held_out)
    how = "and refined by gradient steps, without labels" if repair.refined else "without training"
    return f"{went} What stays was fitted to the original on {clips}, {how}."


def factored_words(number: int) -> str:
    """How many projections became two matrices, in few words."""
    return f"{counted(number, 'projection')} factored"


def ranks_sentence(manifest: Manifest) -> str:
    """How many projections became two thinner matrices; begins with a space.

    Empty where none were to.
    """
    ranks = manifest.ranks
    if ranks is None:
        return ""
    if not ranks.factored:
        return f" None of the encoder's {ranks.total} projections is cheaper as two matrices."
    before, after = ranks.weights
    held = [one.rank for one in ranks.factored]
    least, most = min(held), max(held)
    of_rank = f"of rank {least}" if least == most else f"of ranks {least} to {most}"
    number = len(ranks.factored)
    became = "became a pair" if number == 1 else "became pairs"
    return (
        f" Of the encoder's {ranks.total} projections {number} {became} of thinner matrices, "
        f"{of_rank}: {count(before)} → {count(after)} weights."
    )


def training_sentence(manifest: Manifest) -> str:
    """What was done, or not, for the pruned model after removal."""
    repair, recovery = manifest.repair, manifest.recovery
    if recovery is not None:
        steps, clips = recovery.recovery.steps, manifest.medium.counted(recovery.recovery.clips)
        return f"it was then trained towards the original, {steps} steps on {clips}"
    if repair is not None and repair.refined:
        return "beyond gradient steps without labels, layer by layer, it was not trained afterwards"
    return "it was not trained afterwards"


def size_sentence(manifest: Manifest) -> str:
    """ONNX file, parameters and multiply-adds of the original and of what the gates hold."""
    original, held = manifest.original, manifest.held
    files = "The ONNX files" if len(held.files) > 1 else "The ONNX file"
    size_change = change(original.size_bytes, held.size_bytes)
    return (
        f"{files} ({held.name}) went from {megabytes(original.size_bytes)} to "
        f"{megabytes(held.size_bytes)} ({size_change}), parameters from "
        f"{count(original.parameters)} to {count(held.parameters)}, multiply-adds for "
        f"{counted_work(manifest.counted_work)} from {count(original.macs)} to {count(held.macs)}."
    )
