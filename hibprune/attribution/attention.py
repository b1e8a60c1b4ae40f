"""Attention score: the largest weight a head gives, the baseline that looks at weights alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, MethodBase, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, score_in_batches, within_memory
from hibprune.records import Scores

COPIES_OF_ATTENTION = 2
"""The weights of each sample, and those of all of them in one tensor."""


class WeightsMethod(MethodBase):
    """A method that sees attention weights and nothing else, not even what a head gives out."""

    batch_size: int = Field(default=16, ge=1)
    memory_gib: float | None = Field(default=None, gt=0)

    resources: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory_gib"})
    cost: ClassVar[str] = "1 forward pass per sample"

    @abstractmethod
    def over_frames(self, largest: Tensor, valid: Tensor) -> Tensor:
        """Scores (batch, heads) from the largest weight in each row, (batch, heads, frames).

        `valid` (batch, frames) is true on frames that are not padding; the others' weights are 0.
        """

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        def score_batch(
            calibration: CalibrationBatch, report: Callable[[float, float], None]
        ) -> Tensor:
            largest = [weights.amax(-1) for weights in calibration.attention.values()]
            return self.over_frames(torch.cat(largest, dim=1), calibration.valid)

        batch_size = within_memory(model, self.batch_size, self.memory_gib, COPIES_OF_ATTENTION)
        rows = score_in_batches(model, samples, score_batch, batch_size, session)
        return self.scores(model, samples, rows)


class AttentionScore(WeightsMethod):
    """Largest attention weight of a clip, the baseline of AttAttr's figure 2."""

    method: Literal["attention"]

    title: ClassVar[str] = "Attention score: the head's largest attention weight"
    source: ClassVar[str] = "Hao et al. 2021 (AttAttr), figure 2's baseline"

    def over_frames(self, largest: Tensor, valid: Tensor) -> Tensor:
        return largest.amax(-1)
