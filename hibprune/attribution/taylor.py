"""Taylor: how steeply the loss changes when a head's output is turned down, to first order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, Row, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, Report
from hibprune.attribution.fitting import score_by_batch
from hibprune.attribution.methods import Taylor
from hibprune.attribution.sensitivity import columns_by_layer, gate_gradients
from hibprune.records.units import Head, Scores


def attribute(
    method: Taylor,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample."""

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


def normalised(rows: Sequence[Row], heads: Sequence[Head]) -> list[Row]:
    """Rows scaled so that the mean scores of each layer have L2 norm 1, where any is not 0."""
    scores = np.array(rows)
    for columns in columns_by_layer(heads):
        norm = np.linalg.norm(scores[:, columns].mean(0))
        if norm > 0:
            scores[:, columns] /= norm
    return [tuple(row) for row in scores.tolist()]
