"""Gates, at the limit and to either side of it, judged by intervals where there are any."""

from __future__ import annotations

import math

import pytest
from manifests import make_variant

from hibprune.recipe import Gates
from hibprune.records.base import Interval
from hibprune.records.measurements import Gate, Latency, Measurement
from hibprune.records.variants import VariantLatency
from hibprune.stages.gates import check_gates


def verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def measurement(value: float, higher_is_better: bool = True) -> Measurement:
    return Measurement(
        metric="accuracy" if higher_is_better else "WER",
        value=value,
        interval=Interval(0.0, 1.0),
        n=100,
        higher_is_better=higher_is_better,
    )


def latency(seconds: float, before: tuple[float, ...], after: tuple[float, ...]) -> VariantLatency:
    raw = Latency(
        runtime="r", provider="p", threads=1, batch=1, seconds=seconds,
        times={"model": {"original": before, "pruned": after}},
    )  # fmt: skip
    return VariantLatency.of(raw, "pruned")


# Twice as fast at one length, 1.25 times at the other.
TWO_LENGTHS = (latency(1.0, (2.0, 2.0), (1.0, 1.0)), latency(5.0, (10.0, 10.0), (8.0, 8.0)))


def check(
    gates: Gates,
    before: Measurement,
    after: Measurement,
    size: int = 1_000_000,
    change: Interval | None = None,
    latencies: tuple[VariantLatency, ...] = TWO_LENGTHS,
) -> tuple[Gate, ...]:
    original = make_variant("original").model_copy(update={"metric": before})
    pruned = make_variant("pruned").model_copy(
        update={"metric": after, "change": change, "size_bytes": size, "latency": latencies}
    )
    return check_gates(gates, {"original": original, "pruned": pruned})


@pytest.mark.parametrize(
    ("exported", "passed", "drop"),
    [(0.95, True, 0.0), (0.97, True, -0.02), (0.93, True, 0.02), (0.929, False, 0.021)],
)
def test_accuracy_may_drop_to_the_limit(exported: float, passed: bool, drop: float) -> None:
    (gate,) = check(Gates(max_accuracy_drop=0.02), measurement(0.95), measurement(exported))
    assert (gate.name, gate.limit, gate.verdict) == ("max_accuracy_drop", 0.02, verdict(passed))
    assert gate.value == pytest.approx(drop)


@pytest.mark.parametrize(("exported", "passed"), [(0.05, True), (0.11, True), (0.12, False)])
def test_word_errors_may_rise_to_the_limit(exported: float, passed: bool) -> None:
    (gate,) = check(Gates(max_wer_rise=0.01), measurement(0.1, False), measurement(exported, False))
    assert (gate.name, gate.verdict) == ("max_wer_rise", verdict(passed))
    assert gate.value == pytest.approx(exported - 0.1)


@pytest.mark.parametrize(("limit", "passed"), [(1.0, True), (1.25, True), (1.26, False)])
def test_the_slowest_length_counts(limit: float, passed: bool) -> None:
    (gate,) = check(Gates(min_speedup=limit), measurement(0.9), measurement(0.9))
    assert (gate.name, gate.value, gate.verdict) == ("min_speedup", 1.25, verdict(passed))


@pytest.mark.parametrize(("size", "passed"), [(1_500_000, True), (1_500_001, False)])
def test_megabytes_are_millions_of_bytes(size: int, passed: bool) -> None:
    (gate,) = check(Gates(max_file_mb=1.5), measurement(0.9), measurement(0.9), size)
    assert (gate.name, gate.value, gate.verdict) == ("max_file_mb", size / 1e6, verdict(passed))


def test_gates_that_are_not_set_stay_out() -> None:
    assert check(Gates(), measurement(0.9), measurement(0.1)) == ()
    both = check(Gates(max_file_mb=2.0, max_accuracy_drop=0.0), measurement(0.9), measurement(0.9))
    assert [gate.name for gate in both] == ["max_accuracy_drop", "max_file_mb"]
    assert all(gate.verdict == "passed" for gate in both)


@pytest.mark.parametrize(
    ("limit", "usual", "strict"),
    [
        (0.01, "failed", "failed"),
        (0.02, "undecided", "failed"),
        (0.03, "undecided", "failed"),
        (0.045, "undecided", "failed"),
        (0.05, "passed", "passed"),
        (0.06, "passed", "passed"),
    ],
)
def test_a_drop_is_judged_by_its_interval(limit: float, usual: str, strict: str) -> None:
    """0.04, somewhere from 0.02 to 0.05: the value alone decides nothing."""
    for verdict, setting in ((usual, False), (strict, True)):
        (gate,) = check(
            Gates(max_accuracy_drop=limit, strict=setting),
            measurement(0.95),
            measurement(0.91),
            change=Interval(-0.05, -0.02),
        )
        assert gate.interval == (0.02, 0.05)
        assert gate.value == pytest.approx(0.04)
        assert (gate.verdict, gate.strict) == (verdict, setting)
        assert gate.holds_limit == (0.02 <= limit <= 0.05)


@pytest.mark.parametrize(("metric", "name"), [("WER", "max_wer_rise"), ("CER", "max_cer_rise")])
def test_a_rise_of_errors_keeps_the_sign_of_its_change(metric: str, name: str) -> None:
    before, after = (
        measurement(value, False).model_copy(update={"metric": metric}) for value in (0.1, 0.13)
    )
    (gate,) = check(Gates.model_validate({name: 0.04}), before, after, change=Interval(0.02, 0.05))
    assert (gate.name, gate.interval, gate.verdict) == (name, (0.02, 0.05), "undecided")


@pytest.mark.parametrize("strict", [False, True])
def test_an_unchanged_metric_keeps_a_limit_of_zero(strict: bool) -> None:
    same = measurement(0.9)
    (gate,) = check(Gates(max_accuracy_drop=0, strict=strict), same, same, change=Interval(0, 0))
    assert (gate.verdict, gate.holds_limit) == ("passed", False)


def noisy(seconds: float, before: float, spread: float) -> VariantLatency:
    """Its ratio is `before`, in an interval that reaches as far as the spread."""
    times = tuple(before * (1 + spread * (number % 5 - 2)) for number in range(30))
    return latency(seconds, times, (1.0,) * 30)


@pytest.mark.parametrize(
    ("limit", "strict", "verdict"),
    [
        (1.05, False, "undecided"),
        (1.05, True, "failed"),
        (1.5, False, "failed"),
        (0.7, True, "passed"),
    ],
)
def test_a_speedup_that_is_not_known_well_is_undecided(
    limit: float, strict: bool, verdict: str
) -> None:
    same, wide = measurement(0.9), noisy(1.0, 1.02, 0.1)
    assert wide.ratio_interval.low < 1.05 < wide.ratio_interval.high
    gates = Gates(min_speedup=limit, strict=strict)
    (gate,) = check(gates, same, same, latencies=(wide,))
    assert (gate.value, gate.interval) == (pytest.approx(1.02), wide.ratio_interval)
    assert gate.verdict == verdict


def test_the_length_that_keeps_least_to_the_limit_counts() -> None:
    """The smallest ratio is not known well enough to fail; another one is."""
    same, wide, narrow = measurement(0.9), noisy(1.0, 1.0, 0.1), noisy(5.0, 1.02, 0.001)
    both = (wide, narrow)
    (gate,) = check(Gates(min_speedup=1.05), same, same, latencies=both)
    assert (gate.value, gate.verdict) == (pytest.approx(1.02), "failed")
    (gate,) = check(Gates(min_speedup=0.95), same, same, latencies=both)
    assert (gate.value, gate.verdict) == (pytest.approx(1.0), "undecided")


def test_a_file_has_no_interval() -> None:
    same = measurement(0.9)
    (size,) = check(Gates(max_file_mb=1, strict=True), same, same)
    assert (size.interval, size.verdict, size.holds_limit) == (None, "passed", False)


def test_a_number_that_is_none_keeps_no_limit() -> None:
    nothing = Interval(math.nan, math.nan)
    (gate,) = check(Gates(max_accuracy_drop=1), measurement(0.9), measurement(0.9), change=nothing)
    assert gate.verdict == "failed"


def test_a_variant_that_could_not_be_made_keeps_no_limit() -> None:
    gates = Gates(max_accuracy_drop=0.5, min_speedup=0.1, max_file_mb=99, variant="pruned-int8")
    found = check_gates(gates, {name: make_variant(name) for name in ("original", "pruned")})
    assert [(gate.value, gate.verdict) for gate in found] == [(None, "failed")] * 3


def test_gates_hold_the_variant_that_is_named() -> None:
    variants = {name: make_variant(name) for name in ("original", "pruned", "pruned-int8")}
    variants["pruned-int8"] = make_variant("pruned-int8", value=0.5)
    for name, wanted in (("pruned", "passed"), ("pruned-int8", "failed")):
        (gate,) = check_gates(
            Gates.model_validate({"max_accuracy_drop": 0.1, "variant": name}), variants
        )
        assert gate.verdict == wanted
