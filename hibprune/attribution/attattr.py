"""AttAttr: integrated gradients of the model's answer along its own attention, from none to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.attribution.methods import Answer, AttAttr
from hibprune.attribution.session import Loss, Sample, Session, scores_of
from hibprune.models.attention import input_length
from hibprune.models.attention_mixing import layer_attention_replaced
from hibprune.models.replay import (
    Layers,
    layers_recorded,
    layers_repeated,
    layers_replayed,
    prefix_replayed,
)
from hibprune.records.units import Scores


def attribute(
    method: AttAttr,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample."""
    one_pass = method.model_copy(update={"steps": 1})

    def step(calibration: CalibrationBatch, report: Report) -> None:
        _largest(attributed(one_pass, model, calibration, loss, at_once=1), calibration)

    passes = within_measured_memory(method, model, session.waiting(samples), step)

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        at_once = passes(input_length(model, calibration.batch.inputs))
        found = attributed(method, model, calibration, loss, at_once, report)
        return _largest(found, calibration)

    def batch_size(length: int) -> int:
        return passes(length) // method.steps

    rows = score_in_batches(method, model, samples, score_batch, batch_size, session)
    return scores_of(method, model, samples, rows)


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
