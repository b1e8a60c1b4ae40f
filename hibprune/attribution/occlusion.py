"""Occlusion: what the task loses when one head alone falls silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attention import heads_of, silenced
from hibprune.attribution.base import AnyStackMethod, Loss, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, score_in_batches
from hibprune.records import ENCODER, Head, Scores
from hibprune.replay import (
    encoder_kept,
    layers_recorded,
    layers_replayed,
    prefix_replayed,
)


class Occlusion(AnyStackMethod):
    """Rise of the task loss, a clip at a time, when this head alone is silenced.

    Negative: better without.
    """

    method: Literal["occlusion"]
    batch_size: int = Field(default=16, ge=1)

    resources: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    title: ClassVar[str] = "Occlusion: rise of the task loss when one head alone is silenced"
    source: ClassVar[str] = "leave-one-out, as in Michel et al. 2019"
    cost: ClassVar[str] = "2 + heads forward passes per sample"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        heads = heads_of(model, self.stacks)

        def score_batch(
            calibration: CalibrationBatch, report: Callable[[float, float], None]
        ) -> Tensor:
            rises: dict[Head, Tensor] = {}
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
                            rises[head] = loss(model, calibration.batch) - whole
                        report(len(rises) / len(heads), float(whole.mean()))
            return torch.stack([rises[head] for head in heads], dim=1)

        rows = score_in_batches(
            model, samples, score_batch, lambda length: self.batch_size, session, attention=False
        )
        return self.scores(model, samples, rows)
