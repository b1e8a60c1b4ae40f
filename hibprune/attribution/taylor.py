"""Taylor: how steeply the loss changes when a head's output is turned down, to first order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, Row, Sample, Session, scores_of
from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import score_by_batch, within_measured_memory
from hibprune.attribution.methods import Taylor
from hibprune.attribution.sensitivity import (
    channel_gradients,
    columns_by_layer,
    gate_gradients,
    neuron_gradients,
)
from hibprune.models.units import units_of
from hibprune.records.units import POOLS, Head, Kind, Pool, Scores

Gradients = Callable[[PreTrainedModel, CalibrationBatch, Loss], tuple[Tensor, Tensor]]
"""Slopes of the loss (samples, units), and the loss of every sample."""


def attribute(
    method: Taylor,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
    pool: Pool = "head",
) -> Scores:
    """Score the encoder's heads of every sample, or another pool's units over all samples."""
    if pool != "head":
        return _many(method, model, samples, loss, session, pool)

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        slopes, losses = gate_gradients(model, calibration, loss, method.stacks)
        report(1.0, float(losses.mean()))
        return slopes.abs()

    scores = score_by_batch(method, model, samples, session, score_batch)
    if method.normalise == "none":
        return scores
    return scores.model_copy(
        update={"per_sample": tuple(normalised(scores.per_sample, scores.heads))}
    )


def _many(
    method: Taylor,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
    pool: Pool,
) -> Scores:
    """Mean over samples of the slopes of a pool's units; a row a sample would be as long."""
    kind, stack = POOLS[pool]
    of_kind: dict[Kind, Gradients] = {
        "head": partial(gate_gradients, stacks=(stack,)),
        "neuron": partial(neuron_gradients, stack=stack),
        "channel": channel_gradients,
    }
    gradients = of_kind[kind]
    if pool == "channel":
        # In front of the encoder, samples that share a batch would be padded.
        method = method.model_copy(update={"batch_size": 1})

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        slopes, losses = gradients(model, calibration, loss)
        report(1.0, float(losses.mean()))
        return slopes.abs()

    waiting = session.waiting(samples)
    batch_size = within_measured_memory(method, model, waiting, score_batch)
    # Not kept on the way: a row has a number for every unit.
    alone = replace(session, save=lambda rows, steps=None, training=None: None)
    rows = score_in_batches(method, model, samples, score_batch, batch_size, alone)
    mean = np.mean(np.array(rows), axis=0)
    return scores_of(method, model, samples, [tuple(mean.tolist())], units_of(model, pool))


def normalised(rows: Sequence[Row], heads: Sequence[Head]) -> list[Row]:
    """Rows scaled so that the mean scores of each layer have L2 norm 1, where any is not 0."""
    scores = np.array(rows)
    for columns in columns_by_layer(heads):
        norm = np.linalg.norm(scores[:, columns].mean(0))
        if norm > 0:
            scores[:, columns] /= norm
    return [tuple(row) for row in scores.tolist()]
