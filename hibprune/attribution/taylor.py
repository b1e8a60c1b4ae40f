"""Taylor: how steeply the loss changes when a head's output is turned down, to first order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import AnyStackMethod, BatchedMethod, Loss, Row, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.attribution.sensitivity import columns_by_layer, gate_gradients
from hibprune.models.attention import heads_of
from hibprune.records.units import Head, Scores


class Taylor(AnyStackMethod, BatchedMethod):
    """abs(∂loss/∂ξ) at ξ = 1 for a factor ξ on the head's output, a clip at a time.

    `normalise: layer` divides by the L2 norm of a layer's mean scores, as Michel et al. do after
    Molchanov et al. 2017; the default compares heads of all layers as they are.
    """

    method: Literal["taylor"]
    normalise: Literal["none", "layer"] = "none"

    title: ClassVar[str] = "Taylor: slope of the task loss as the head's output is turned down"
    source: ClassVar[str] = "Michel, Levy, Neubig 2019, eq. 2"
    cost: ClassVar[str] = "2 forward passes + 1 backward per sample"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
            slopes, losses = gate_gradients(model, calibration, loss, self.stacks)
            report(1.0, float(losses.mean()))
            return slopes.abs()

        waiting = session.waiting(samples)
        batch_size = within_measured_memory(self, model, waiting, score_batch)
        rows = score_in_batches(self, model, samples, score_batch, batch_size, session)
        heads = heads_of(model, self.stacks)
        return self.scores(
            model, samples, rows if self.normalise == "none" else normalised(rows, heads)
        )


def normalised(rows: Sequence[Row], heads: Sequence[Head]) -> list[Row]:
    """Rows scaled so that the mean scores of each layer have L2 norm 1, where any is not 0."""
    scores = np.array(rows)
    for columns in columns_by_layer(heads):
        norm = np.linalg.norm(scores[:, columns].mean(0))
        if norm > 0:
            scores[:, columns] /= norm
    return [tuple(row) for row in scores.tolist()]
