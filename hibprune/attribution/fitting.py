"""Fits batches into memory by what a method's own work takes, measured on the longest samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

from transformers import PreTrainedModel

from hibprune.attribution.batches import (
    CalibrationBatch,
    Report,
    ScoreBatch,
    no_room,
    read_unmodified,
    score_in_batches,
)
from hibprune.attribution.interface import BatchedMethod
from hibprune.attribution.session import Sample, Session, scores_of
from hibprune.execution.memory import free_bytes, or_none_without_memory, peak_bytes
from hibprune.models.attention import input_length, positions_fitted
from hibprune.models.families import family_of
from hibprune.records.units import Scores

SHARE_OF_FREE_MEMORY = 0.5
"""What a batch may take up unless `memory_gib` says otherwise: kernels need room of their own."""

Step = Callable[[CalibrationBatch, Report], object]
"""What a method does to one batch, or as much of it as takes the most memory."""


def within_measured_memory(
    method: BatchedMethod, model: PreTrainedModel, samples: Sequence[Sample], step: Step
) -> Callable[[int], int]:
    """The largest batch for a length of input, of at most `batch_size`, within `memory_gib`.

    The step is run once, when a size is first asked for, which is to be within `frozen`: on the
    longest sample or, where lengths differ, on it and the longest of the shorter ones, since
    padding brings masks, and attention under a mask other kernels. What the unmodified model
    computes on them before counts too.

    Shorter samples take at most a proportional part of that: memory grows with the length and, in
    the attention, with its square; what does not grow is counted for every sample of a batch. What
    a decoder says is taken to grow with the length too.

    Raises:
        UserError: asked for a size, when the longest sample does not fit into what is free.
    """

    @cache
    def fitting() -> float:
        """How long all samples of a batch may be together, each as long as the longest."""
        room = _room(method, model)
        return room / _bytes_per_length(method, model, samples, step)

    return lambda length: max(1, min(method.batch_size, int(fitting() / length)))


def score_by_batch(
    method: BatchedMethod,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    session: Session,
    score_batch: ScoreBatch,
    heaviest: Step | None = None,
) -> Scores:
    """A row of scores for each sample, in batches as large as fit.

    `heaviest` is as much of the work on a batch as takes the most memory, where that is less than
    all of it.

    Raises:
        UserError: a single sample does not fit into memory.
    """
    waiting = session.waiting(samples)
    batch_size = within_measured_memory(method, model, waiting, heaviest or score_batch)
    rows = score_in_batches(method, model, samples, score_batch, batch_size, session)
    return scores_of(method, model, samples, rows)


def _room(method: BatchedMethod, model: PreTrainedModel) -> float:
    """Bytes that a batch may take up."""
    if method.memory_gib is not None:
        return method.memory_gib * 2**30
    return SHARE_OF_FREE_MEMORY * free_bytes(next(model.parameters()).device)


def _bytes_per_length(
    method: BatchedMethod, model: PreTrainedModel, samples: Sequence[Sample], step: Step
) -> float:
    """What a sample takes in a batch of the longest ones, by the length of its input."""
    device = next(model.parameters()).device
    lengths = {sample.id: input_length(model, sample.inputs) for sample in samples}
    # Among clips of one length, the one that a decoder is given most tokens of.
    by_length = sorted(samples, key=lambda one: (-lengths[one.id], -_size(one)))

    def measured(chosen: Sequence[Sample]) -> float | None:
        """None where they do not fit."""

        def work() -> None:
            step(
                read_unmodified(model, chosen, method.reads_attention),
                lambda share, loss: None,
            )

        def measure() -> float:
            with positions_fitted(model, chosen[0].inputs):
                taken = max(1, peak_bytes(work, device))
            return taken / len(chosen) / lengths[chosen[0].id]

        return or_none_without_memory(measure)

    longest, shortest = by_length[0], by_length[-1]
    shorter = [one for one in by_length if lengths[one.id] < lengths[longest.id]]
    mixed = method.batch_size > 1 and not family_of(model.config.model_type).equal_lengths
    if shorter and mixed:
        padded = measured([longest, shorter[0]])
        if padded is not None:
            return padded
    alone = measured([longest])
    if alone is not None:
        return alone
    # Memory grows with the square of the length at most.
    share, at_shortest = None, measured([shortest]) if shorter else None
    if at_shortest is not None:
        growth = free_bytes(device) / (at_shortest * lengths[shortest.id])
        ratio = lengths[shortest.id] / lengths[longest.id]
        share = min(1.0, ratio * math.sqrt(max(1.0, growth)))
    raise no_room(longest, share)


def _size(sample: Sample) -> int:
    return sum(value.numel() for value in sample.inputs.values())
