"""AttAttr: integrated gradients of the model's answer along its own attention, from none to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import BatchedMethod, BatchSize, Loss, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.models.attention import input_length, layer_attention_replaced
from hibprune.models.replay import (
    Layers,
    layers_recorded,
    layers_repeated,
    layers_replayed,
    prefix_replayed,
)
from hibprune.records.units import Scores

Answer = Literal["probability", "log-likelihood"]


class AttAttr(BatchedMethod):
    """Largest entry of Attr_h(A) = A_h ⊙ ∫₀¹ ∂F(αA)/∂A_h dα, a layer at a time.

    A holds all heads of the layer, which are scaled together, so a layer's attributions add up to
    F(A) − F(0); single heads' need not. All other layers attend as usual. The integral is a sum of
    `steps` equal steps, at their upper ends as in the paper. F is `answer`: `probability` is
    exp(−loss), that of the true label, or of all slots together; `log-likelihood` is −loss, which
    for speech recognition is per token of the transcript. Left open, it is the log-likelihood for
    recognition and the probability for everything else.
    """

    method: Literal["attattr"]
    answer: Answer | None = None
    steps: int = Field(default=20, ge=1)
    batch_size: BatchSize = 100
    """Passes at once: samples times steps."""

    reads_attention: ClassVar[bool] = True
    title: ClassVar[str] = "AttAttr: integrated gradients along the head's own attention"
    source: ClassVar[str] = "Hao et al. 2021; HIB paper, eq. 18"
    cost: ClassVar[str] = "2 forwards + layers × steps × (forward + backward) per sample"

    def for_task(self, task: str) -> Self:
        usual: Answer = "log-likelihood" if task.startswith("asr") else "probability"
        return self.model_copy(update={"answer": usual if self.answer is None else self.answer})

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        one_pass = self.model_copy(update={"steps": 1})

        def step(calibration: CalibrationBatch, report: Report) -> None:
            _largest(attributed(one_pass, model, calibration, loss, at_once=1), calibration)

        passes = within_measured_memory(self, model, session.waiting(samples), step)

        def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
            at_once = passes(input_length(model, calibration.batch.inputs))
            found = attributed(self, model, calibration, loss, at_once, report)
            return _largest(found, calibration)

        def batch_size(length: int) -> int:
            return passes(length) // self.steps

        rows = score_in_batches(self, model, samples, score_batch, batch_size, session)
        return self.scores(model, samples, rows)


def _largest(attributions: Mapping[int, Tensor], calibration: CalibrationBatch) -> Tensor:
    """Each head's largest entry between valid frames: (batch, heads)."""
    padded = ~calibration.valid_pairs
    largest = [
        attribution.masked_fill(padded, float("-inf")).amax((-1, -2))
        for attribution in attributions.values()
    ]
    return torch.cat(largest, dim=1)


def attributed(
    method: AttAttr,
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    loss: Loss,
    at_once: int,
    report: Report = lambda share, value: None,
) -> dict[int, Tensor]:
    """Attr(A) (batch, heads, frames, frames) of every layer that has heads.

    `at_once` passes run as one batch: as many steps as fit for all samples of the batch.
    """
    assert method.answer is not None
    samples = len(calibration.batch.ids)
    points = torch.arange(1, method.steps + 1, device=calibration.valid.device) / method.steps
    totals = {layer: torch.zeros_like(weights) for layer, weights in calibration.attention.items()}
    given_out = _layers(model, calibration, loss)
    done = 0
    for scales in points.split(max(1, at_once // samples)):
        repeated = calibration.repeated(len(scales))
        below = layers_repeated(given_out, samples, len(scales))
        for layer, weights in calibration.attention.items():
            scaled = (weights[:, None] * scales[:, None, None, None]).flatten(0, 1)
            gradient, losses = _gradient(method.answer, model, repeated, loss, below, layer, scaled)
            totals[layer] += gradient.unflatten(0, (samples, len(scales))).sum(1)
            done += len(scales)
            report(done / (method.steps * len(totals)), float(losses.mean()))
    return {
        layer: calibration.attention[layer] * total / method.steps
        for layer, total in totals.items()
    }


def _layers(model: PreTrainedModel, calibration: CalibrationBatch, loss: Loss) -> Layers:
    """What the layers give out, since no layer below the scaled one changes."""
    with (
        torch.no_grad(),
        prefix_replayed(model, calibration.prefix),
        layers_recorded(model) as recorded,
    ):
        loss(model, calibration.batch)
    return recorded


def _gradient(
    answer: Answer,
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    loss: Loss,
    below: Layers,
    layer: int,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """∂F/∂A of one layer at the given weights, and the losses there."""
    weights.requires_grad_(True)
    with (
        torch.enable_grad(),
        prefix_replayed(model, calibration.prefix),
        layers_replayed(model, below, layer),
        layer_attention_replaced(model, layer, lambda values: weights @ values),
    ):
        losses = loss(model, calibration.batch)
        told = (-losses).exp() if answer == "probability" else -losses
        (gradient,) = torch.autograd.grad(told.sum(), weights)
    return gradient, losses.detach()
