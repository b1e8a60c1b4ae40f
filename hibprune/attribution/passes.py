"""Measures what scoring takes: time, and passes through the model, whatever the method says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import stack_layers
from hibprune.models.families import family_of
from hibprune.records.units import Effort


@dataclass
class Passes:
    """Clips that went through the encoder, and those whose gradient came back through it."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def passes_counted(model: PreTrainedModel) -> Iterator[Passes]:
    """Count clips at the encoder's last layer: a batch of 7 counts 7.

    A pass that runs the front end, the decoder or earlier layers alone does not count.
    """
    passes = Passes()
    last = stack_layers(model.base_model, family_of(model.config.model_type).encoder)[-1]

    def count(_module: nn.Module, _inputs: object, outputs: Tensor | tuple[Tensor, ...]) -> None:
        states = outputs[0] if isinstance(outputs, tuple) else outputs
        clips = len(states)
        passes.forwards += clips
        if states.requires_grad:

            def count_back(_gradient: Tensor) -> None:
                passes.backwards += clips

            states.register_hook(count_back)

    handle = last.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


@contextmanager
def effort_measured(model: PreTrainedModel, samples: int) -> Iterator[Callable[[], Effort]]:
    """Hand out a function that says what has been done inside, for so many samples."""
    start = time.perf_counter()
    with passes_counted(model) as passes:
        yield lambda: Effort(
            seconds=time.perf_counter() - start,
            forwards=passes.forwards,
            backwards=passes.backwards,
            samples=samples,
        )
