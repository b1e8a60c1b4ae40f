"""Latency of several models, interleaved in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from hibprune.records.medium import Length, LengthSettings, Medium

if TYPE_CHECKING:
    from torch import Tensor

    from hibprune.execution.runtime import Timed

Times = dict[str, tuple[float, ...]]
"""Milliseconds of every round, by model."""


class BenchmarkSettings(LengthSettings):
    """Lengths to time at batch 1, how often, and with how many threads.

    A model with a decoder says as many tokens as a validation clip of median length has; encoder
    and one step of the decoder are timed alone as well. `rivals` measures beside it what one would
    take instead of a pruned model: the original in int8.
    """

    seconds: tuple[FiniteFloat, ...] = Field(default=(1.0, 5.0, 15.0), min_length=1)
    tokens: tuple[int, ...] = Field(default=(16, 64, 128), min_length=1)
    repetitions: int = Field(default=30, ge=2)
    warmup: int = Field(default=5, ge=1)
    threads: int = Field(default=1, ge=1)
    rivals: bool = True

    def middle(self, medium: Medium) -> Length:
        """The length that `budget.speedup` is of: the middle one, of an even number the longer."""
        lengths = sorted(self.lengths(medium), key=lambda length: length.value)
        return lengths[len(lengths) // 2]


def measure_latency(
    models: Mapping[str, Timed],
    inputs: Callable[[Length, int], dict[str, Tensor]],
    settings: BenchmarkSettings,
    medium: Medium,
    progress: Callable[[float], None] = lambda share: None,
) -> Iterator[tuple[Length, dict[str, Times]]]:
    """Time models against each other: at every length, the whole model and then each of its parts.

    `inputs` makes a batch from its length and batch size. Yields for each length the times by part.
    """
    lengths = settings.lengths(medium)
    for place, length in enumerate(lengths):
        example = inputs(length, 1)
        work = {name: timed(example) for name, timed in models.items()}
        parts = list(next(iter(work.values())))
        times = {}
        for done, part in enumerate(parts, start=1):
            times[part] = _interleaved({name: work[name][part] for name in work}, settings)
            progress((place + done / len(parts)) / len(lengths))
        yield length, times


def _interleaved(runs: Mapping[str, Callable[[], object]], settings: BenchmarkSettings) -> Times:
    """Every round runs each once, in an order that alternates.

    So that drift of the machine and what one leaves in the caches fall on all alike.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(settings.warmup + settings.repetitions):
        for name in order:
            start = time.perf_counter()
            runs[name]()
            times[name].append((time.perf_counter() - start) * 1000)
        order.reverse()
    return {name: tuple(taken[settings.warmup :]) for name, taken in times.items()}
