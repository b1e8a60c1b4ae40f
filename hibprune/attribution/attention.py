"""Attention score: the largest weight a head gives, the baseline that looks at weights alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import BatchedMethod, Loss, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.records.units import Scores


class WeightsMethod(BatchedMethod):
    """A method that sees attention weights and nothing else, not even what a head gives out."""

    reads_attention: ClassVar[bool] = True
    cost: ClassVar[str] = "1 forward pass per sample"

    @abstractmethod
    def over_frames(self, largest: Tensor, valid: Tensor) -> Tensor:
        """Scores (batch, heads) from the largest weight in each row, (batch, heads, frames).

        `valid` (batch, frames) is true on frames that are not padding; the others' weights are 0.
        """

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
            largest = [weights.amax(-1) for weights in calibration.attention.values()]
            return self.over_frames(torch.cat(largest, dim=1), calibration.valid)

        waiting = session.waiting(samples)
        batch_size = within_measured_memory(self, model, waiting, score_batch)
        rows = score_in_batches(self, model, samples, score_batch, batch_size, session)
        return self.scores(model, samples, rows)


class AttentionScore(WeightsMethod):
    """Largest attention weight of a clip, the baseline of AttAttr's figure 2."""

    method: Literal["attention"]

    title: ClassVar[str] = "Attention score: the head's largest attention weight"
    source: ClassVar[str] = "Hao et al. 2021 (AttAttr), figure 2's baseline"

    def over_frames(self, largest: Tensor, valid: Tensor) -> Tensor:
        return largest.amax(-1)
