"""What the steps hand to each other: frozen records that go to JSON and back unchanged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from hibprune.medium import SYMBOLS, Length
from hibprune.statistics import bootstrap_interval, split_half_correlation

ENCODER = "encoder"

Scope = Literal["global", "layerwise"]
"""Whether a budget is one of all heads, or one for every layer."""


class Record(BaseModel):
    """Base of every record: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, order=True)
class Head:
    """One attention head by its original place, also after earlier pruning.

    `stack` names the attention it belongs to: `encoder`, `decoder.self` or `decoder.cross`. JSON
    leaves it out for the encoder's, which are the ones a plan can remove.
    """

    layer: int
    index: int
    stack: str = ENCODER

    @model_serializer(mode="wrap")
    def _without_the_usual_stack(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        return {k: v for k, v in content.items() if (k, v) != ("stack", ENCODER)}


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def heads_by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    """Group heads as `{layer: [indices]}`, the form `prune_heads` and the manifest use."""
    grouped: dict[int, list[int]] = {}
    for head in sorted(heads):
        grouped.setdefault(head.layer, []).append(head.index)
    return grouped


class Effort(Record):
    """What scoring took: seconds, and clips sent through the encoder and back.

    For `samples` of the calibration clips: fewer than all where an interrupted run had done some,
    or a share of a training.
    """

    seconds: float
    forwards: int
    backwards: int
    samples: int


class Scores(Record):
    """How much each head matters to the task: higher matters more.

    `per_sample` has one row per calibration sample, aligned with `samples`, and one column per
    head, aligned with `heads`; methods that look at weights alone, or at all samples together, have
    a single row. `steps` is how many each sample took, where the method had to find that out.
    """

    method: str
    heads: tuple[Head, ...]
    samples: tuple[str, ...]
    per_sample: tuple[tuple[float, ...], ...]
    steps: int | None = None
    effort: Effort | None = None

    @property
    def values(self) -> dict[Head, float]:
        """Mean over samples of each head's score."""
        n = len(self.per_sample)
        columns = zip(*self.per_sample, strict=True)
        return {head: sum(column) / n for head, column in zip(self.heads, columns, strict=True)}

    @property
    def split_half(self) -> float | None:
        """Spearman correlation of head scores between random halves of the samples.

        Near 1: the samples were enough to fix the ranking. None with fewer than 4 samples.
        """
        return split_half_correlation(self.per_sample)


class Training(Record):
    """How far a training over all samples together has come.

    `steps` are those done, `share` of all that there will be; `state` holds by name the vectors
    that the next step starts from.
    """

    steps: int
    share: float
    state: dict[str, tuple[float, ...]]


class Plan(Record):
    """Which heads go and which stay; both sorted by (layer, index)."""

    removed: tuple[Head, ...]
    kept: tuple[Head, ...]

    @property
    def total(self) -> int:
        return len(self.removed) + len(self.kept)


class HeadShare(Record):
    """A fraction of `total` heads that was to go, over the whole model or of every layer."""

    fraction: float
    total: int
    scope: Scope

    def rounding(self, removed: int) -> str | None:
        """What rounding down to whole heads took, in words; None where it took nothing."""
        asked = round(self.fraction * self.total, 9)
        if asked == removed:
            return None
        where = " in every layer" if self.scope == "layerwise" else ""
        return f"{self.fraction:g} of {self.total} is {asked:g}, rounded down{where}"


class Measurement(Record):
    """A task metric with its 95 % interval over `n` utterances."""

    metric: str
    value: float
    interval: Interval
    n: int
    higher_is_better: bool


class Evaluation(Measurement):
    """A measurement with what it was made of, utterance by utterance.

    `errors` holds what is wrong with each and `counted` what could have been: 0 or 1 of 1 for
    a label, words for a transcript.
    """

    errors: tuple[float, ...] = ()
    counted: tuple[float, ...] = ()

    @property
    def measurement(self) -> Measurement:
        """The figures alone."""
        return Measurement.model_validate(self.model_dump(exclude={"errors", "counted"}))


def paired_change(before: Evaluation, after: Evaluation) -> Interval | None:
    """95 % bootstrap interval of the metric's change, over inputs both models were given.

    In the metric's own direction: below zero where accuracy falls, above where word errors rise.
    None where the inputs are not known to be the same.
    """
    if not before.errors or before.counted != after.counted:
        return None
    sign = -1 if before.higher_is_better else 1

    def change(first: np.ndarray, second: np.ndarray, counted: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(sign * (second - first).sum(axis=axis) / counted.sum(axis=axis))

    return Interval(*bootstrap_interval([before.errors, after.errors, before.counted], change))


class AtLength(Record):
    """Base of what holds for inputs of one length.

    In JSON the unit is the key: `"seconds": 5.0` or `"tokens": 64`, behind `length_prefix`.
    """

    length_prefix: ClassVar[str] = ""

    length: Length

    @model_validator(mode="before")
    @classmethod
    def _length_from_its_unit(cls, content: Any) -> Any:
        for unit in SYMBOLS if isinstance(content, dict) else ():
            key = f"{cls.length_prefix}{unit}"
            if key in content:
                others = {name: value for name, value in content.items() if name != key}
                return {**others, "length": {"value": content[key], "unit": unit}}
        return content

    @model_serializer(mode="wrap")
    def _unit_as_key(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        key = f"{self.length_prefix}{self.length.unit}"
        return {
            key if name == "length" else name: self.length.value if name == "length" else value
            for name, value in content.items()
        }


class Footprint(AtLength):
    """Size of a PyTorch model: parameters, and multiply-adds for one input of some length."""

    length_prefix: ClassVar[str] = "at_"

    parameters: int
    macs: int


class ParityCase(AtLength):
    """Largest absolute difference of logits between PyTorch and ONNX Runtime for one shape."""

    batch: int
    max_abs_diff: float


class Parity(Record):
    """Agreement of the exported model with PyTorch over several lengths and batch sizes."""

    tolerance: float
    cases: tuple[ParityCase, ...]

    @property
    def max_abs_diff(self) -> float:
        return max(case.max_abs_diff for case in self.cases)


class Percentiles(Record):
    """Latency percentiles in milliseconds; for sound, the median real-time factor."""

    p50: float
    p90: float
    p99: float
    real_time_factor: float | None


class Latency(AtLength):
    """Raw interleaved times (milliseconds) of the original and the pruned model at one length.

    `before_ms[i]` and `after_ms[i]` were measured one right after the other.
    """

    runtime: str
    provider: str
    threads: int
    batch: int
    before_ms: tuple[float, ...]
    after_ms: tuple[float, ...]

    @property
    def before(self) -> Percentiles:
        return _percentiles(self.before_ms, self.length)

    @property
    def after(self) -> Percentiles:
        return _percentiles(self.after_ms, self.length)

    @property
    def ratio(self) -> float:
        """Speed-up: median time before over median after; above 1 the pruned model is faster."""
        return self.before.p50 / self.after.p50

    @property
    def ratio_interval(self) -> Interval:
        """95 % bootstrap interval of `ratio` over the measured pairs."""

        def ratio(before: np.ndarray, after: np.ndarray, axis: int) -> np.ndarray:
            return np.asarray(np.median(before, axis=axis) / np.median(after, axis=axis))

        return Interval(*bootstrap_interval([self.before_ms, self.after_ms], ratio))


def _percentiles(times_ms: tuple[float, ...], length: Length) -> Percentiles:
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99]))
    factor = None if length.seconds is None else p50 / 1000 / length.seconds
    return Percentiles(p50=p50, p90=p90, p99=p99, real_time_factor=factor)


class Removal(Record):
    """What removal changed by count, and the files of the pruned model."""

    before: Footprint
    after: Footprint
    files: tuple[str, ...]


class Benchmark(Record):
    """Latency of original and pruned ONNX model, and the size of the original's file in bytes."""

    latencies: tuple[Latency, ...]
    original_bytes: int


class Gate(Record):
    """A limit the run was held to and what was measured, with its 95 % interval where it has one.

    The verdict is on `value` alone.
    """

    name: str
    limit: float
    value: float
    interval: Interval | None = None
    passed: bool

    @property
    def within_noise(self) -> bool:
        """Whether another measurement might well have come out on the other side of the limit."""
        if self.interval is None or self.interval.low == self.interval.high:
            return False
        return self.interval.low <= self.limit <= self.interval.high
