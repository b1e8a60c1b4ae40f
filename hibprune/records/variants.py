"""A variant: a model that was measured, with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from hibprune.records.base import Interval, Record
from hibprune.records.measurements import (
    AtWork,
    Evaluation,
    Latency,
    Measurement,
    Parity,
    Percentiles,
    percentiles,
)
from hibprune.records.medium import Unit
from hibprune.records.padding import PaddingEffect
from hibprune.records.precision import Agreement, Int8Guard, Precision
from hibprune.records.statistics import bootstrap_interval
from hibprune.records.transcripts import TranscriptFaults

ORIGINAL, PRUNED = "original", "pruned"
VariantName = Literal["pruned", "pruned-int8", "pruned-fp16"]
"""What can be deployed."""
DEPLOYABLE: tuple[VariantName, ...] = get_args(VariantName)


def precision_of(variant: str) -> str:
    """The precision that a variant's name tells: int8 of `pruned-int8`, fp32 of `pruned`."""
    return variant.partition("-")[2] or "fp32"


class VariantPlan(Record):
    """A variant that is to be made: its name, the one it is made from, and its precision."""

    name: str
    parent: str | None
    precision: Precision

    @property
    def is_rival(self) -> bool:
        """Whether it is there for comparison, not to be deployed."""
        return self.name.startswith(ORIGINAL)


class GraphFile(Record):
    """An ONNX graph of a variant; `path` is its place in the directory, where it is left there."""

    name: str
    path: str | None
    size_bytes: int
    sha256: str


class Converted(Record):
    """What came of making a lower precision: why it could not be, or what stayed in float32.

    `in_float` are nodes of an fp16 graph whose numbers float16 cannot hold.
    """

    fault: str | None = None
    guard: Int8Guard | None = None
    in_float: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Measured(Record):
    """A variant's metric, its graphs, how it agrees, and of the pruned one what padding changes."""

    evaluation: Evaluation
    graphs: tuple[GraphFile, ...]
    agreement: Agreement | None = None
    padding: PaddingEffect | None = None


class OutputParity(Record):
    """How far an output of the ONNX files is from PyTorch's where that is furthest from it.

    `relative_diff` is `max_abs_diff` as a share of `scale`, PyTorch's largest absolute value.
    """

    output: str
    max_abs_diff: float
    scale: float
    relative_diff: float


class ParitySummary(Record):
    """How closely every output of the ONNX files follows PyTorch, and where that was looked for.

    `tolerance` limits the relative differences; `lengths` are in `unit`.
    """

    tolerance: float
    outputs: tuple[OutputParity, ...]
    lengths: tuple[int | float, ...]
    unit: Unit = "seconds"
    batches: tuple[int, ...]

    @property
    def max_relative_diff(self) -> float:
        return max(output.relative_diff for output in self.outputs)

    @classmethod
    def of(cls, parity: Parity, unit: Unit) -> ParitySummary:
        """The worst of every output."""
        return cls(
            tolerance=parity.tolerance,
            outputs=tuple(
                OutputParity(
                    output=case.output,
                    max_abs_diff=case.max_abs_diff,
                    scale=case.scale,
                    relative_diff=case.relative_diff,
                )
                for case in parity.worst_by_output
            ),
            lengths=tuple(sorted({case.length.value for case in parity.cases})),
            unit=unit,
            batches=tuple(sorted({case.batch for case in parity.cases})),
        )


class Timing(Record):
    """Times of a variant; `ratio` above 1 means that it is faster than the original.

    The interval is over pairs of times taken one right after the other.
    """

    times: Percentiles
    ratio: float
    ratio_interval: Interval


class PartTiming(Timing):
    """Times of a part of the model alone, such as one step of a decoder."""

    part: str


class VariantLatency(AtWork, Timing):
    """Latency at one length, of the whole model and of its parts where it is run in parts."""

    runtime: str
    provider: str
    threads: int
    batch: int
    repetitions: int
    parts: tuple[PartTiming, ...] = ()

    @classmethod
    def of(cls, latency: Latency, name: str) -> VariantLatency:
        """What was measured of one variant, against the original."""
        whole, *parts = latency.times.items()
        seconds = latency.length.seconds
        own = _timing(whole[1], name, seconds)
        return cls(
            length=latency.length,
            window_seconds=latency.window_seconds,
            decoded_tokens=latency.decoded_tokens,
            runtime=latency.runtime,
            provider=latency.provider,
            threads=latency.threads,
            batch=latency.batch,
            repetitions=len(whole[1][name]),
            times=own.times,
            ratio=own.ratio,
            ratio_interval=own.ratio_interval,
            parts=tuple(
                PartTiming(part=part, **dict(_timing(times, name, None))) for part, times in parts
            ),
        )


def _timing(
    times: Mapping[str, Sequence[float]], name: str, seconds_of_sound: float | None
) -> Timing:
    def ratio(before: np.ndarray, after: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(np.median(before, axis=axis) / np.median(after, axis=axis))

    before, after = times[ORIGINAL], times[name]
    own = percentiles(after, seconds_of_sound)
    if name == ORIGINAL:
        return Timing(times=own, ratio=1.0, ratio_interval=Interval(1.0, 1.0))
    return Timing(
        times=own,
        ratio=percentiles(before, None).p50 / own.p50,
        ratio_interval=Interval(*bootstrap_interval([before, after], ratio)),
    )


class Variant(Record):
    """A model that was measured: what was done to it, its files, and every figure.

    `change` is the 95 % interval of its metric less the original's, input by input; None for the
    original, and where inputs are not known to be the same. `constant` is what it said of every
    input where that was the same, `faults` what share of its transcripts went wrong altogether, of
    a model with a decoder. `parity` holds fp32 against PyTorch, `agreement` a lower
    precision against the fp32 it was made from. `padding` is what filling clips up to one length
    changes, looked at of the pruned model in fp32. What it said is in `predictions/<name>.jsonl`.
    """

    name: str
    parent: str | None
    precision: Precision
    done: tuple[str, ...]
    files: tuple[GraphFile, ...]
    parameters: int
    macs: int
    metric: Measurement
    change: Interval | None = None
    constant: str | None = None
    faults: TranscriptFaults | None = None
    parity: ParitySummary | None = None
    agreement: Agreement | None = None
    guard: Int8Guard | None = None
    in_float: tuple[str, ...] = ()
    padding: PaddingEffect | None = None
    latency: tuple[VariantLatency, ...] = ()
    size_bytes: int

    @property
    def is_rival(self) -> bool:
        """Whether it is there for comparison, not to be deployed."""
        return self.name.startswith(ORIGINAL)


class MissingVariant(Record):
    """A variant that was asked for and could not be made, and why."""

    name: str
    precision: Precision
    reason: str
