"""Attention score: the largest weight a head gives, the baseline that looks at weights alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.batches import CalibrationBatch, Report
from hibprune.attribution.fitting import score_by_batch
from hibprune.attribution.interface import BatchedMethod
from hibprune.attribution.methods import AttentionScore
from hibprune.attribution.session import Loss, Sample, Session
from hibprune.records.units import Scores


def attribute(
    method: AttentionScore,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample; the loss is not looked at."""
    return score_weights(method, model, samples, session, lambda largest, valid: largest.amax(-1))


def score_weights(
    method: BatchedMethod,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    session: Session,
    over_frames: Callable[[Tensor, Tensor], Tensor],
) -> Scores:
    """Score heads by their attention weights and nothing else, not even what they give out.

    `over_frames` makes scores (batch, heads) of the largest weight in each row (batch, heads,
    frames) and of `valid` (batch, frames), true on frames that are not padding; the others' weights
    are 0.
    """

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        largest = [weights.amax(-1) for weights in calibration.attention.values()]
        return over_frames(torch.cat(largest, dim=1), calibration.valid)

    return score_by_batch(method, model, samples, session, score_batch)
