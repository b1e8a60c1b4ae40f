"""Occlusion: what the task loses when one head alone falls silent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.batches import CalibrationBatch, Report
from hibprune.attribution.fitting import score_by_batch
from hibprune.attribution.methods import Occlusion
from hibprune.attribution.session import Loss, Sample, Session
from hibprune.models.attention import heads_of, silenced
from hibprune.models.replay import (
    encoder_kept,
    layers_recorded,
    layers_replayed,
    prefix_replayed,
)
from hibprune.records.units import ENCODER, Head, Scores


def attribute(
    method: Occlusion,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample."""
    heads = heads_of(model, method.stacks)
    # The lowest head of a stack has the most computed above it.
    lowest = list({head.stack: head for head in reversed(heads)}.values())

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        return rises(model, calibration, loss, heads, report)

    def heaviest(calibration: CalibrationBatch, report: Report) -> Tensor:
        return rises(model, calibration, loss, lowest, report)

    return score_by_batch(method, model, samples, session, score_batch, heaviest)


def rises(
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    loss: Loss,
    heads: Sequence[Head],
    report: Report,
) -> Tensor:
    """How much the loss of each sample rises with each head alone silenced: (batch, heads)."""
    found: dict[Head, Tensor] = {}
    with torch.no_grad(), prefix_replayed(model, calibration.prefix), ExitStack() as kept:
        with layers_recorded(model) as recorded:
            whole = loss(model, calibration.batch)
        for encoders in (True, False):
            own = [head for head in heads if (head.stack == ENCODER) == encoders]
            if own and not encoders:
                # No decoder head changes what the encoder gives out.
                kept.enter_context(encoder_kept(model))
            for head in own:
                # Nor does a head of the encoder change what lies below it.
                below = head.layer if encoders else 0
                with layers_replayed(model, recorded, below), silenced(model, [head]):
                    found[head] = loss(model, calibration.batch) - whole
                report(len(found) / len(heads), float(whole.mean()))
    return torch.stack([found[head] for head in heads], dim=1)
