"""Findings on variants in words and rows; the same for terminal, report and card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hibprune.records.manifest import Manifest
from hibprune.records.variants import ORIGINAL, Variant, VariantLatency
from hibprune.report.numbers import (
    capitalised,
    change,
    listing,
    megabytes,
    metric_decimals,
    percent,
)
from hibprune.report.wording import (
    change_finding,
    metric_name,
    percent_interval,
    ratio_interval,
    speed_changed,
    work,
)

PLAIN_INT8 = f"{ORIGINAL}-int8"


class VariantRow(NamedTuple):
    """A variant at a glance; details stand below or behind the figures."""

    name: str
    done: str
    metric: str
    interval: str
    finding: str
    size: str
    size_change: str
    speeds: tuple[str, ...]
    speed_intervals: tuple[str, ...]


def variant_rows(manifest: Manifest) -> list[VariantRow]:
    """All variants, the original first."""
    return [variant_row(manifest.original, variant) for variant in manifest.variants]


def variant_row(original: Variant, variant: Variant) -> VariantRow:
    """A variant beside the original, which may be itself."""
    decimals = metric_decimals(original.metric.n)
    first = variant.name == ORIGINAL
    return VariantRow(
        name=variant.name,
        done=", ".join(variant.done) or "as it was",
        metric=percent(variant.metric.value, decimals),
        interval=percent_interval(variant.metric.interval, variant.metric.n),
        finding="" if first else change_finding(original.metric, variant.metric, variant.change),
        size=megabytes(variant.size_bytes),
        size_change="" if first else change(original.size_bytes, variant.size_bytes),
        speeds=tuple("1×" if first else f"{one.ratio:.2f}×" for one in variant.latency),
        speed_intervals=tuple("" if first else ratio_interval(one) for one in variant.latency),
    )


def speed_headings(manifest: Manifest) -> list[str]:
    """What the columns of speeds are called: `1 s`, `64 tokens`."""
    return [str(one.length) for one in manifest.original.latency]


def deployment_sentences(manifest: Manifest) -> list[str]:
    """Which variant to deploy and why, and whether plain int8 would have done as well."""
    own = [one for one in manifest.variants if not one.is_rival]
    sound = [one for one in own if _holds(manifest, one)]
    if not sound:
        name, sign = (
            metric_name(manifest.metric.name),
            1 if manifest.metric.higher_is_better else -1,
        )
        nearest = max(own, key=lambda one: sign * one.metric.value)
        sentences = [
            f"Deploy none of the pruned variants: none is known to keep the {name} of the "
            f"original; {nearest.name} is nearest."
        ]
        return sentences + _against_plain_int8(manifest, nearest)
    # What is slower than the original has paid with speed for its size.
    chosen = min(sound, key=lambda one: (_slower(one), one.size_bytes))
    return [
        f"Deploy {chosen.name}: {_reasons(manifest, chosen)}.",
        *_alternatives(chosen, sound),
        *_against_plain_int8(manifest, chosen),
    ]


def _alternatives(chosen: Variant, sound: Sequence[Variant]) -> list[str]:
    """What is faster than the variant chosen, or smaller and slow."""
    sentences = []
    faster = [one for one in sound if one is not chosen and _faster(one, chosen)]
    if faster:
        fastest = max(faster, key=_speed)
        sentences.append(f"Larger and faster: {fastest.name} ({_figures(fastest)}).")
    smaller = [one for one in sound if one.size_bytes < chosen.size_bytes]
    if smaller:
        smallest = min(smaller, key=lambda one: one.size_bytes)
        sentences.append(f"Smaller, but slower here: {smallest.name} ({_figures(smallest)}).")
    if any(one.precision == "fp16" for one in sound):
        sentences.append("Float16 is meant for GPUs and browsers.")
    return sentences


def _holds(manifest: Manifest, variant: Variant) -> bool:
    """Whether a variant's metric is not worse than the original's beyond noise."""
    return _kept(manifest, variant) is not None


def _kept(manifest: Manifest, variant: Variant) -> str | None:
    """What became of the metric of a variant that is not worse; None of one that is or may be."""
    original, name = manifest.original.metric, metric_name(manifest.metric.name)
    finding = change_finding(original, variant.metric, variant.change)
    if finding == "no change":
        return f"the same {name} as the original"
    if finding == "within noise":
        return f"{name} within the noise of the original"
    gained = variant.metric.value - original.value
    is_better = (gained > 0) == original.higher_is_better
    return f"better {name} than the original" if is_better else None


def _reasons(manifest: Manifest, variant: Variant) -> str:
    reasons = [
        _kept(manifest, variant) or "",
        f"{change(manifest.original.size_bytes, variant.size_bytes)} in size",
    ]
    if variant.latency:
        longest = variant.latency[-1]
        speed = f"{longest.ratio:.2f}× as fast at {longest.length}"
        reasons.append(speed if speed_changed(longest) else f"no faster at {longest.length}")
    return listing(reasons)


def _figures(variant: Variant) -> str:
    """Size and, where it was measured, speed at the longest input."""
    size = megabytes(variant.size_bytes)
    if not variant.latency:
        return size
    return f"{size}, {_speed(variant):.2f}× at {variant.latency[-1].length}"


def _against_plain_int8(manifest: Manifest, chosen: Variant) -> list[str]:
    """Where the original in int8, which takes no pruning, does as well or better."""
    rival = next((one for one in manifest.variants if one.name == PLAIN_INT8), None)
    if rival is None:
        return []
    about = f"plain int8 of the original ({_figures(rival)})"
    name = metric_name(manifest.metric.name)
    if not _holds(manifest, rival):
        return [f"{capitalised(about)} is not known to keep the {name}: no way out."]
    if not _holds(manifest, chosen):
        return [f"Pruning lost: {about} keeps the {name}."]
    wins = [
        *(["smaller"] if rival.size_bytes < chosen.size_bytes else []),
        *(["faster"] if _faster(rival, chosen) else []),
    ]
    losses = [
        *(["larger"] if rival.size_bytes > chosen.size_bytes else []),
        *(["slower"] if _faster(chosen, rival) else []),
    ]
    if wins and not losses:
        return [f"Pruning lost: {about} is {listing(wins)}."]
    if wins:
        return [f"{capitalised(about)} is {listing(wins)}, but {listing(losses)}."]
    return [f"{capitalised(about)} {f'is {listing(losses)}' if losses else 'does as well'}."]


def _faster(one: Variant, other: Variant) -> bool:
    """Whether one is faster than another at the longest input, by more than both intervals."""
    if not one.latency or not other.latency:
        return False
    return one.latency[-1].ratio_interval.low > other.latency[-1].ratio_interval.high


def _slower(variant: Variant) -> bool:
    """Whether a variant is slower than the original at the longest input."""
    return bool(variant.latency) and _speed(variant) < 1 and speed_changed(variant.latency[-1])


def _speed(variant: Variant) -> float:
    return variant.latency[-1].ratio if variant.latency else 1.0


def missing_sentences(manifest: Manifest) -> list[str]:
    """A sentence for each variant that was asked for and could not be made."""
    return [f"{one.name} was not made: {one.reason.rstrip('.')}." for one in manifest.missing]


def latency_work(latency: VariantLatency) -> str:
    """The length of an input and what else is done on it: `5 s clip, 30 s window, 24 tokens`."""
    return ", ".join([latency.length.as_input, *work(latency)])
