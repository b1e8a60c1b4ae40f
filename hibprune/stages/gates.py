"""Holds what a run measured against the limits of its recipe."""

from __future__ import annotations

import math

from hibprune.recipe import METRIC_GATES, Gates
from hibprune.records.base import Interval
from hibprune.records.manifest import SPEEDUP
from hibprune.records.measurements import Gate, Latency, Measurement, Verdict

EXACT = 1e-12
"""A drop of exactly the limit passes, also where floats make it a hair more."""

WORST_FIRST: tuple[Verdict, ...] = ("failed", "undecided", "passed")


def check_gates(
    gates: Gates,
    baseline: Measurement,
    exported: Measurement,
    change: Interval | None,
    latencies: tuple[Latency, ...],
    file_bytes: int,
) -> tuple[Gate, ...]:
    """The verdict of every gate that is set.

    `change` is the paired interval of the metric's change. The speed-up counts at every length:
    the gate's is the worst verdict, and of lengths with the same the smallest ratio.
    """
    checked = []
    name = METRIC_GATES[baseline.metric.lower()]
    limit = getattr(gates, name)
    if limit is not None:
        loss, interval = exported.value - baseline.value, change
        if baseline.higher_is_better:
            loss = -loss
            interval = None if change is None else Interval(-change.high, -change.low)
        checked.append(_at_most(name, limit, loss, interval, gates.strict))
    if gates.min_speedup is not None:
        lengths = [_at_least(gates.min_speedup, latency, gates.strict) for latency in latencies]
        checked.append(min(lengths, key=lambda gate: (WORST_FIRST.index(gate.verdict), gate.value)))
    if gates.max_file_mb is not None:
        size = file_bytes / 1e6
        checked.append(_at_most("max_file_mb", gates.max_file_mb, size, None, gates.strict))
    return tuple(checked)


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


def _at_least(limit: float, latency: Latency, strict: bool) -> Gate:
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
