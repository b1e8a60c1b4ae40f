"""Gates, at the limit and to either side of it."""

from __future__ import annotations

import pytest

from hibprune.outcome import check_gates
from hibprune.recipe import Gates
from hibprune.records import Evaluation, Gate, Interval, Latency


def evaluation(value: float, higher_is_better: bool = True) -> Evaluation:
    return Evaluation(
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
    gates: Gates, baseline: Evaluation, exported: Evaluation, size: int = 1_000_000
) -> tuple[Gate, ...]:
    # Twice as fast at one length, 1.25 times at the other.
    latencies = (latency(1.0, 2.0, 1.0), latency(5.0, 10.0, 8.0))
    return check_gates(gates, baseline, exported, latencies, size)


@pytest.mark.parametrize(
    ("exported", "passed", "drop"),
    [(0.95, True, 0.0), (0.97, True, -0.02), (0.93, True, 0.02), (0.929, False, 0.021)],
)
def test_accuracy_may_drop_to_the_limit(exported: float, passed: bool, drop: float) -> None:
    (gate,) = check(Gates(largest_accuracy_drop=0.02), evaluation(0.95), evaluation(exported))
    assert (gate.name, gate.limit, gate.passed) == ("largest_accuracy_drop", 0.02, passed)
    assert gate.value == pytest.approx(drop)


@pytest.mark.parametrize(("exported", "passed"), [(0.05, True), (0.11, True), (0.12, False)])
def test_word_errors_may_rise_to_the_limit(exported: float, passed: bool) -> None:
    (gate,) = check(
        Gates(largest_wer_rise=0.01), evaluation(0.1, False), evaluation(exported, False)
    )
    assert (gate.name, gate.passed) == ("largest_wer_rise", passed)
    assert gate.value == pytest.approx(exported - 0.1)


@pytest.mark.parametrize(("limit", "passed"), [(1.0, True), (1.25, True), (1.26, False)])
def test_the_slowest_length_counts(limit: float, passed: bool) -> None:
    (gate,) = check(Gates(smallest_speedup=limit), evaluation(0.9), evaluation(0.9))
    assert (gate.name, gate.value, gate.passed) == ("smallest_speedup", 1.25, passed)


@pytest.mark.parametrize(("size", "passed"), [(1_500_000, True), (1_500_001, False)])
def test_megabytes_are_millions_of_bytes(size: int, passed: bool) -> None:
    (gate,) = check(Gates(largest_file_mb=1.5), evaluation(0.9), evaluation(0.9), size)
    assert (gate.name, gate.value, gate.passed) == ("largest_file_mb", size / 1e6, passed)


def test_gates_that_are_not_set_stay_out() -> None:
    assert check(Gates(), evaluation(0.9), evaluation(0.1)) == ()
    both = check(
        Gates(largest_file_mb=2.0, largest_accuracy_drop=0.0), evaluation(0.9), evaluation(0.9)
    )
    assert [gate.name for gate in both] == ["largest_accuracy_drop", "largest_file_mb"]
    assert all(gate.passed for gate in both)
