"""Taylor: how steeply the loss changes when a head's output is turned down, to first order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attention import heads_of
from hibprune.attribution.base import AnyStackMethod, Loss, Row, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, score_in_batches, within_memory
from hibprune.attribution.sensitivity import COPIES_OF_ATTENTION, columns_by_layer, gate_gradients
from hibprune.records import Head, Scores


class Taylor(AnyStackMethod):
    """abs(∂loss/∂ξ) at ξ = 1 for a factor ξ on the head's output, a clip at a time.

    `normalise: layer` divides by the L2 norm of a layer's mean scores, as Michel et al. do after
    Molchanov et al. 2017; the default compares heads of all layers as they are.
    """

    method: Literal["taylor"]
    normalise: Literal["none", "layer"] = "none"
    batch_size: int = Field(default=16, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)

    resources: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory_gib"})
    title: ClassVar[str] = "Taylor: slope of the task loss as the head's output is turned down"
    source: ClassVar[str] = "Michel, Levy, Neubig 2019, eq. 2"
    cost: ClassVar[str] = "2 forward passes + 1 backward per sample"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        def score_batch(
            calibration: CalibrationBatch, report: Callable[[float, float], None]
        ) -> Tensor:
            slopes, losses = gate_gradients(model, calibration, loss, self.stacks)
            report(1.0, float(losses.mean()))
            return slopes.abs()

        batch_size = within_memory(model, self.batch_size, self.memory_gib, COPIES_OF_ATTENTION)
        rows = score_in_batches(model, samples, score_batch, batch_size, session, attention=False)
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
