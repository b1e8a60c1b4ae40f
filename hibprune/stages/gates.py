"""Holds what a run measured against the limits of its recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hibprune.recipe import METRIC_GATES, Gates
from hibprune.records.base import Interval
from hibprune.records.manifest import SPEEDUP
from hibprune.records.measurements import Gate, Verdict
from hibprune.records.variants import ORIGINAL, Variant, VariantLatency

EXACT = 1e-12
"""A drop of exactly the limit passes, also where floats make it a hair more."""

WORST_FIRST: tuple[Verdict, ...] = ("failed", "undecided", "passed")


def check_gates(gates: Gates, variants: Mapping[str, Variant]) -> tuple[Gate, ...]:
    """The verdict of every gate that is set, on the variant that they hold.

    One that could not be made fails them all. The speed-up counts at every length: the gate's is
    the worst verdict, and of lengths with the same the smallest ratio.
    """
    original, held = variants[ORIGINAL].metric, variants.get(gates.variant)
    limits = {
        name: limit
        for name in (METRIC_GATES[original.metric.lower()], SPEEDUP, "max_file_mb")
        if (limit := getattr(gates, name)) is not None
    }
    if held is None:
        return tuple(_not_made(name, limit, gates.strict) for name, limit in limits.items())
    checked = []
    for name, limit in limits.items():
        if name == SPEEDUP:
            lengths = [_at_least(limit, latency, gates.strict) for latency in held.latency]
            worst = min(lengths, key=lambda gate: (WORST_FIRST.index(gate.verdict), gate.value))
            checked.append(worst)
        elif name == "max_file_mb":
            checked.append(_at_most(name, limit, held.size_bytes / 1e6, None, gates.strict))
        else:
            loss, interval = held.metric.value - original.value, held.change
            if original.higher_is_better:
                loss = -loss
                interval = None if interval is None else Interval(-interval.high, -interval.low)
            checked.append(_at_most(name, limit, loss, interval, gates.strict))
    return tuple(checked)


def _not_made(name: str, limit: float, strict: bool) -> Gate:
    return Gate(name=name, limit=limit, value=None, verdict="failed", strict=strict)


def _at_most(
    name: str, limit: float, value: float, interval: Interval | None, strict: bool
) -> Gate:
    low, high = (value, value) if interval is None else interval
    return Gate(
        name=name,
        limit=limit,
        value=value,
        interval=interval,
        verdict=_verdict(best=low - limit, worst=high - limit, strict=strict),
        strict=strict,
    )


def _at_least(limit: float, latency: VariantLatency, strict: bool) -> Gate:
    low, high = interval = latency.ratio_interval
    return Gate(
        name=SPEEDUP,
        limit=limit,
        value=latency.ratio,
        interval=interval,
        verdict=_verdict(best=limit - high, worst=limit - low, strict=strict),
        strict=strict,
    )


def _verdict(best: float, worst: float, strict: bool) -> Verdict:
    """By how far the two ends of an interval are beyond the limit.

    A number that is none is beyond every limit.
    """
    if worst <= EXACT:
        return "passed"
    if strict or best > EXACT or math.isnan(best):
        return "failed"
    return "undecided"
