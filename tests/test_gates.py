"""Gates, at the limit and to either side of it."""

from __future__ import annotations

import pytest

from hibprune.recipe import Gates
from hibprune.records.base import Interval
from hibprune.records.measurements import Gate, Latency, Measurement
from hibprune.stages.outcome import check_gates


def measurement(value: float, higher_is_better: bool = True) -> Measurement:
    return Measurement(
        metric="accuracy" if higher_is_better else "WER",
        value=value,
        interval=Interval(0.0, 1.0),
        n=100,
        higher_is_better=higher_is_better,
    )


def latency(seconds: float, before: float, after: float) -> Latency:
    return Latency(
        runtime="r", provider="p", threads=1, batch=1, seconds=seconds,
        before_ms=(before, before), after_ms=(after, after),
    )  # fmt: skip


def check(
    gates: Gates,
    baseline: Measurement,
    exported: Measurement,
    size: int = 1_000_000,
    change: Interval | None = None,
) -> tuple[Gate, ...]:
    # Twice as fast at one length, 1.25 times at the other.
    latencies = (latency(1.0, 2.0, 1.0), latency(5.0, 10.0, 8.0))
    return check_gates(gates, baseline, exported, change, latencies, size)


@pytest.mark.parametrize(
    ("exported", "passed", "drop"),
    [(0.95, True, 0.0), (0.97, True, -0.02), (0.93, True, 0.02), (0.929, False, 0.021)],
)
def test_accuracy_may_drop_to_the_limit(exported: float, passed: bool, drop: float) -> None:
    (gate,) = check(Gates(largest_accuracy_drop=0.02), measurement(0.95), measurement(exported))
    assert (gate.name, gate.limit, gate.passed) == ("largest_accuracy_drop", 0.02, passed)
    assert gate.value == pytest.approx(drop)


@pytest.mark.parametrize(("exported", "passed"), [(0.05, True), (0.11, True), (0.12, False)])
def test_word_errors_may_rise_to_the_limit(exported: float, passed: bool) -> None:
    (gate,) = check(
        Gates(largest_wer_rise=0.01), measurement(0.1, False), measurement(exported, False)
    )
    assert (gate.name, gate.passed) == ("largest_wer_rise", passed)
    assert gate.value == pytest.approx(exported - 0.1)


@pytest.mark.parametrize(("limit", "passed"), [(1.0, True), (1.25, True), (1.26, False)])
def test_the_slowest_length_counts(limit: float, passed: bool) -> None:
    (gate,) = check(Gates(smallest_speedup=limit), measurement(0.9), measurement(0.9))
    assert (gate.name, gate.value, gate.passed) == ("smallest_speedup", 1.25, passed)


@pytest.mark.parametrize(("size", "passed"), [(1_500_000, True), (1_500_001, False)])
def test_megabytes_are_millions_of_bytes(size: int, passed: bool) -> None:
    (gate,) = check(Gates(largest_file_mb=1.5), measurement(0.9), measurement(0.9), size)
    assert (gate.name, gate.value, gate.passed) == ("largest_file_mb", size / 1e6, passed)


def test_gates_that_are_not_set_stay_out() -> None:
    assert check(Gates(), measurement(0.9), measurement(0.1)) == ()
    both = check(
        Gates(largest_file_mb=2.0, largest_accuracy_drop=0.0), measurement(0.9), measurement(0.9)
    )
    assert [gate.name for gate in both] == ["largest_accuracy_drop", "largest_file_mb"]
    assert all(gate.passed for gate in both)


@pytest.mark.parametrize(
    ("limit", "close"), [(0.01, False), (0.02, True), (0.04, True), (0.05, True), (0.06, False)]
)
def test_a_drop_is_a_close_call_where_its_interval_holds_the_limit(
    limit: float, close: bool
) -> None:
    (gate,) = check(
        Gates(largest_accuracy_drop=limit),
        measurement(0.95),
        measurement(0.91),
        change=Interval(-0.05, -0.02),
    )
    assert gate.interval == (0.02, 0.05)
    assert (gate.passed, gate.within_noise) == (limit >= 0.04, close)


def test_a_rise_of_word_errors_keeps_the_sign_of_its_change() -> None:
    (gate,) = check(
        Gates(largest_wer_rise=0.04),
        measurement(0.1, False),
        measurement(0.13, False),
        change=Interval(0.02, 0.05),
    )
    assert (gate.interval, gate.passed, gate.within_noise) == ((0.02, 0.05), True, True)


def test_an_unchanged_metric_is_no_close_call_at_a_limit_of_zero() -> None:
    same = measurement(0.9)
    (gate,) = check(Gates(largest_accuracy_drop=0), same, same, change=Interval(0, 0))
    assert (gate.passed, gate.within_noise) == (True, False)


def test_a_speedup_has_the_interval_of_the_slowest_length() -> None:
    def noisy(seconds: float, after: float) -> Latency:
        return latency(seconds, 2.0, after).model_copy(
            update={"before_ms": (2.0,) * 30, "after_ms": (after, after * 1.5, after) * 10}
        )

    latencies = (noisy(1.0, 1.0), noisy(5.0, 1.6))
    same = measurement(0.9)
    (gate,) = check_gates(Gates(smallest_speedup=1.2), same, same, None, latencies, 1)
    assert gate.value == pytest.approx(1.25)
    assert gate.interval == latencies[1].ratio_interval
    (size,) = check_gates(Gates(largest_file_mb=1), same, same, None, latencies, 1)
    assert size.interval is None
