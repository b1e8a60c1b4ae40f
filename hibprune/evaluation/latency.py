"""Latency of the original against the pruned model, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Callable

from pydantic import Field
from torch import Tensor

from hibprune.execution.runtime import Predict
from hibprune.records.measurements import Latency
from hibprune.records.medium import Length, LengthSettings, Medium


class BenchmarkSettings(LengthSettings):
    """Lengths to time at batch 1, how often, and with how many threads."""

    seconds: tuple[float, ...] = Field(default=(1.0, 5.0, 15.0), min_length=1)
    tokens: tuple[int, ...] = Field(default=(16, 64, 128), min_length=1)
    repetitions: int = Field(default=30, ge=2)
    warmup: int = Field(default=5, ge=1)
    threads: int = Field(default=1, ge=1)


def measure_latency(
    original: Predict,
    pruned: Predict,
    provider: str,
    inputs: Callable[[Length, int], dict[str, Tensor]],
    settings: BenchmarkSettings,
    medium: Medium,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Latency, ...]:
    """Time two ONNX models against each other at every length.

    Each repetition runs both, in an order that alternates, so that drift of the machine and what
    one leaves in the caches fall on both alike.
    """
    latencies = []
    lengths = settings.lengths(medium)
    for place, length in enumerate(lengths):
        example = inputs(length, 1)
        before, after = _interleaved(original, pruned, example, settings)
        latencies.append(
            Latency(
                runtime="onnxruntime",
                provider=provider,
                threads=settings.threads,
                batch=1,
                length=length,
                before_ms=before,
                after_ms=after,
            )
        )
        progress((place + 1) / len(lengths))
    return tuple(latencies)


def _interleaved(
    original: Predict, pruned: Predict, example: dict[str, Tensor], settings: BenchmarkSettings
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    before: list[float] = []
    after: list[float] = []
    for repetition in range(settings.warmup + settings.repetitions):
        turns = [(original, before), (pruned, after)]
        for predict, times in turns if repetition % 2 == 0 else reversed(turns):
            start = time.perf_counter()
            predict(example)
            times.append((time.perf_counter() - start) * 1000)
    return tuple(before[settings.warmup :]), tuple(after[settings.warmup :])
