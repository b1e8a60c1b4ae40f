"""Findings on variants in words and rows; the same for terminal, report and card."""

from __future__ import annotations

from typing import NamedTuple

from hibprune.records.manifest import Manifest
from hibprune.records.variants import ORIGINAL, Variant, VariantLatency
from hibprune.report.numbers import change, listing, megabytes, metric_decimals, percent
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
    return [_row(manifest, variant) for variant in manifest.variants]


def _row(manifest: Manifest, variant: Variant) -> VariantRow:
    original, decimals = manifest.original, metric_decimals(manifest.metric.n)
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
    sound = [one for one in manifest.variants if not one.is_rival and _holds(manifest, one)]
    if not sound:
        name = metric_name(manifest.metric.name)
        kept = max(
            (one for one in manifest.variants if not one.is_rival),
            key=lambda one: one.metric.value * (1 if manifest.metric.higher_is_better else -1),
        )
        sentences = [
            f"No pruned variant keeps the {name} within the noise of the original; {kept.name} is "
            "nearest."
        ]
        return sentences + _against_plain_int8(manifest, kept)
    smallest = min(sound, key=lambda one: one.size_bytes)
    sentences = [f"Deploy {smallest.name}: {_reasons(manifest, smallest)}."]
    faster = [one for one in sound if one is not smallest and _faster(one, smallest)]
    if faster:
        fastest = max(faster, key=_speed)
        sentences.append(
            f"{_first_upper(fastest.name)} is larger, {megabytes(fastest.size_bytes)}, and faster: "
            f"{_speed(fastest):.2f}× at {fastest.latency[-1].length}."
        )
    return sentences + _against_plain_int8(manifest, smallest)


def _holds(manifest: Manifest, variant: Variant) -> bool:
    """Whether a variant's metric is not worse than the original's beyond noise."""
    original = manifest.original.metric
    finding = change_finding(original, variant.metric, variant.change)
    gained = (variant.metric.value - original.value) * (1 if original.higher_is_better else -1)
    return gained >= 0 or finding == "within noise"


def _reasons(manifest: Manifest, variant: Variant) -> str:
    name = metric_name(manifest.metric.name)
    size = change(manifest.original.size_bytes, variant.size_bytes)
    reasons = [f"{name} within the noise of the original", f"{size} of the size"]
    if variant.latency:
        longest = variant.latency[-1]
        speed = f"{longest.ratio:.2f}× as fast at {longest.length}"
        reasons.append(speed if speed_changed(longest) else f"no faster at {longest.length}")
    return listing(reasons)


def _against_plain_int8(manifest: Manifest, chosen: Variant) -> list[str]:
    """Where the original in int8, which takes no pruning, does as well or better."""
    rival = next((one for one in manifest.variants if one.name == PLAIN_INT8), None)
    if rival is None:
        return []
    if not _holds(manifest, rival):
        return ["Plain int8 of the original loses more than noise, so it is no way out."]
    wins = [
        *(["smaller"] if rival.size_bytes < chosen.size_bytes else []),
        *(["faster"] if _faster(rival, chosen) else []),
    ]
    losses = [
        *(["larger"] if rival.size_bytes > chosen.size_bytes else []),
        *(["slower"] if _faster(chosen, rival) else []),
    ]
    about = f"{megabytes(rival.size_bytes)}" + (
        f", {_speed(rival):.2f}× at {rival.latency[-1].length}" if rival.latency else ""
    )
    if wins and not losses:
        return [f"Pruning lost: plain int8 of the original ({about}) is {listing(wins)}."]
    if wins:
        return [f"Plain int8 of the original ({about}) is {listing(wins)}, but {listing(losses)}."]
    if losses:
        return [f"Plain int8 of the original ({about}) is {listing(losses)}."]
    return [f"Plain int8 of the original ({about}) does as well."]


def _faster(one: Variant, other: Variant) -> bool:
    """Whether one is faster than another at the longest input, by more than both intervals."""
    if not one.latency or not other.latency:
        return False
    return one.latency[-1].ratio_interval.low > other.latency[-1].ratio_interval.high


def _speed(variant: Variant) -> float:
    return variant.latency[-1].ratio if variant.latency else 1.0


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def missing_sentences(manifest: Manifest) -> list[str]:
    """A sentence for each variant that was asked for and could not be made."""
    return [f"{one.name} was not made: {one.reason}" for one in manifest.missing]


def latency_work(latency: VariantLatency) -> str:
    """The length of an input and what else is done on it: `5 s clip, 30 s window, 24 tokens`."""
    return ", ".join([latency.length.as_input, *work(latency)])
