"""Confidence: how much of its attention a head gives to one place, on average."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from hibprune.attribution.attention import score_weights
from hibprune.attribution.batches import mean_over_frames
from hibprune.attribution.methods import Confidence
from hibprune.attribution.session import Loss, Sample, Session
from hibprune.records.units import Scores


def attribute(
    method: Confidence,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample; the loss is not looked at."""
    return score_weights(method, model, samples, session, mean_over_frames)
