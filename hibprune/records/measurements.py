"""What was measured of a model: metric, size, agreement, latency, and the limits it is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from hibprune.records.base import Interval, Record
from hibprune.records.medium import SYMBOLS, Length
from hibprune.records.statistics import error_change_interval
from hibprune.records.transcripts import TranscriptFaults


class Measurement(Record):
    """A task metric with its 95 % interval over `n` utterances."""

    metric: str
    value: float
    interval: Interval
    n: int
    higher_is_better: bool

    def beats(self, chance: float) -> bool:
        """Whether it is better than by chance: accuracy with all of its interval, errors as is."""
        return self.interval.low > chance if self.higher_is_better else self.value < chance


class Evaluation(Measurement):
    """A measurement with what it was made of, utterance by utterance.

    `errors` holds what is wrong with each and `counted` what could have been: 0 or 1 of 1 for
    a label, words for a transcript. `constant` is the answer where every input had the same one,
    `faults` what share of the transcripts of a decoder went wrong altogether.
    """

    errors: tuple[float, ...] = ()
    counted: tuple[float, ...] = ()
    constant: str | None = None
    faults: TranscriptFaults | None = None

    @property
    def measurement(self) -> Measurement:
        """The figures alone."""
        return Measurement.model_validate(
            self.model_dump(exclude={"errors", "counted", "constant", "faults"})
        )


def paired_change(before: Evaluation, after: Evaluation, seed: int = 0) -> Interval | None:
    """95 % interval of the metric's change, over inputs both models were given.

    In the metric's own direction: below zero where accuracy falls, above where word errors rise.
    It leaves out 0 where an exact paired test finds a change, whatever the seed of the resamples
    that its ends may come from. None where the inputs are not known to be the same.
    """
    if not before.errors or before.counted != after.counted:
        return None
    differences = np.subtract(after.errors, before.errors)
    low, high = error_change_interval(differences.tolist(), before.counted, seed)
    return Interval(-high, -low) if before.higher_is_better else Interval(low, high)


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


class AtWork(AtLength):
    """Base of what holds for the work done on an input, where its length does not say it all.

    `window_seconds` is what every clip is filled up to, `decoded_tokens` how many tokens a decoder
    says; None where there is no window, no decoder.
    """

    window_seconds: float | None = None
    decoded_tokens: int | None = None


class Footprint(AtWork):
    """Size of a PyTorch model: parameters, and multiply-adds for one input of some length."""

    length_prefix: ClassVar[str] = "at_"

    parameters: int
    macs: int


class ParityCase(AtLength):
    """How far an output of the exported model is from PyTorch's, for one length and batch size.

    `scale` is the largest absolute value that PyTorch gave out there.
    """

    output: str
    batch: int
    max_abs_diff: float
    scale: float

    @property
    def relative_diff(self) -> float:
        """The difference as a share of the scale; where that is 0, any difference is infinite."""
        if self.scale == 0:
            return 0.0 if self.max_abs_diff == 0 else math.inf
        return self.max_abs_diff / self.scale


class Parity(Record):
    """Agreement of the exported model with PyTorch, in every output, length and batch size.

    `tolerance` is the largest relative difference that passes.
    """

    tolerance: float
    cases: tuple[ParityCase, ...]

    @property
    def worst(self) -> ParityCase:
        """The case with the largest relative difference."""
        return _worst(self.cases)

    @property
    def worst_by_output(self) -> tuple[ParityCase, ...]:
        """The worst case of each output, in the order in which they were compared."""
        names = dict.fromkeys(case.output for case in self.cases)
        return tuple(_worst([c for c in self.cases if c.output == name]) for name in names)


def _worst(cases: Sequence[ParityCase]) -> ParityCase:
    # `max` alone would pass over NaN, which is neither more nor less than any number.
    return max(cases, key=lambda case: (math.isnan(case.relative_diff), case.relative_diff))


class Percentiles(Record):
    """Latency percentiles in milliseconds; for sound, the median real-time factor."""

    p50: float
    p90: float
    p99: float
    real_time_factor: float | None


def percentiles(times_ms: Sequence[float], seconds_of_sound: float | None) -> Percentiles:
    """Percentiles of some times; `seconds_of_sound` is the length of what was taken in."""
    p50, p90, p99 = (float(value) for value in np.percentile(times_ms, [50, 90, 99]))
    factor = None if seconds_of_sound is None else p50 / 1000 / seconds_of_sound
    return Percentiles(p50=p50, p90=p90, p99=p99, real_time_factor=factor)


class Latency(AtWork):
    """Raw times (milliseconds) of every variant at one length, taken in turn in every round.

    `times[part][variant][i]` is of round i. The first part is the whole model; others are there
    where it is run in parts.
    """

    runtime: str
    provider: str
    threads: int
    batch: int
    times: dict[str, dict[str, tuple[float, ...]]]


class Removal(Record):
    """What removal changed by count."""

    before: Footprint
    after: Footprint


class Benchmark(Record):
    """Latency of all variants at every length."""

    latencies: tuple[Latency, ...]


Verdict = Literal["passed", "failed", "undecided"]


class Gate(Record):
    """A limit the run was held to and what was measured, with its 95 % interval where it has one.

    Where there is an interval the verdict is by it: `passed` when all of it is within the limit,
    `failed` when all of it is beyond, `undecided` otherwise; where the recipe is `strict`, what
    would be undecided is failed. There is no `value` of a variant that could not be made.
    """

    name: str
    limit: float
    value: float | None
    interval: Interval | None = None
    verdict: Verdict
    strict: bool = False

    @property
    def holds_limit(self) -> bool:
        """Whether another measurement might well have come out on the other side of the limit."""
        if self.interval is None or self.interval.low == self.interval.high:
            return False
        return self.interval.low <= self.limit <= self.interval.high
