"""Occlusion: what the task loses when one head alone falls silent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import AnyStackMethod, BatchedMethod, Loss, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.models.attention import heads_of, silenced
from hibprune.models.replay import (
    encoder_kept,
    layers_recorded,
    layers_replayed,
    prefix_replayed,
)
from hibprune.records.units import ENCODER, Head, Scores


class Occlusion(AnyStackMethod, BatchedMethod):
    """Rise of the task loss, a clip at a time, when this head alone is silenced.

    Negative: better without.
    """

    method: Literal["occlusion"]

    title: ClassVar[str] = "Occlusion: rise of the task loss when one head alone is silenced"
    source: ClassVar[str] = "leave-one-out, as in Michel et al. 2019"
    cost: ClassVar[str] = "2 + heads forward passes per sample"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        heads = heads_of(model, self.stacks)
        # The lowest head of a stack has the most computed above it.
        lowest = list({head.stack: head for head in reversed(heads)}.values())

        def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
            return rises(model, calibration, loss, heads, report)

        batch_size = within_measured_memory(
            self,
            model,
            session.waiting(samples),
            lambda calibration, report: rises(model, calibration, loss, lowest, report),
        )
        rows = score_in_batches(self, model, samples, score_batch, batch_size, session)
        return self.scores(model, samples, rows)


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
