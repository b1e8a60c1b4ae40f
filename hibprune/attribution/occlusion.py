"""Occlusion: what the task loses when one head alone falls silent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attention import encoder_kept, heads_of, prefix_replayed, silenced
from hibprune.attribution.base import Loss, MethodBase, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, score_in_batches
from hibprune.families import Family
from hibprune.records import ENCODER, Head, Scores

StackName = Literal["encoder", "decoder.self", "decoder.cross"]


class Occlusion(MethodBase):
    """Rise of the task loss, a clip at a time, when this head alone is silenced.

    `stacks` also takes `decoder.self` and `decoder.cross` of encoder–decoder models, to compare
    kinds of attention; a plan can be made of the encoder's scores only. Negative: better without.
    """

    method: Literal["occlusion"]
    stacks: tuple[StackName, ...] = Field(default=("encoder",), min_length=1)
    batch_size: int = Field(default=16, ge=1)

    resources: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    title: ClassVar[str] = "Occlusion: rise of the task loss when one head alone is silenced"
    source: ClassVar[str] = "leave-one-out, as in Michel et al. 2019"
    cost: ClassVar[str] = "2 + heads forward passes per sample"

    @field_validator("stacks")
    @classmethod
    def _stacks_are_distinct(cls, stacks: tuple[StackName, ...]) -> tuple[StackName, ...]:
        if len(set(stacks)) < len(stacks):
            raise ValueError("name each stack once")
        return stacks

    def scored_stacks(self) -> tuple[str, ...]:
        return self.stacks

    def family_fault(self, family: Family) -> str | None:
        there = [stack.name for stack in family.stacks]
        missing = [stack for stack in self.stacks if stack not in there]
        return f"it has no attention heads '{missing[0]}'" if missing else None

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        heads = heads_of(model, self.stacks)

        def score_batch(
            calibration: CalibrationBatch, report: Callable[[float, float], None]
        ) -> Tensor:
            rises: dict[Head, Tensor] = {}
            with torch.no_grad(), prefix_replayed(model, calibration.prefix), ExitStack() as kept:
                whole = loss(model, calibration.batch)
                for encoders in (True, False):
                    own = [head for head in heads if (head.stack == ENCODER) == encoders]
                    if own and not encoders:
                        # No decoder head changes what the encoder gives out.
                        kept.enter_context(encoder_kept(model))
                    for head in own:
                        with silenced(model, [head]):
                            rises[head] = loss(model, calibration.batch) - whole
                        report(len(rises) / len(heads), float(whole.mean()))
            return torch.stack([rises[head] for head in heads], dim=1)

        rows = score_in_batches(
            model, samples, score_batch, lambda length: self.batch_size, session, attention=False
        )
        return Scores(
            method=self.method,
            heads=heads,
            samples=tuple(sample.id for sample in samples),
            per_sample=tuple(rows),
        )
