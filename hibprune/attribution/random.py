"""Uniform random scores: the baseline every ranking is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from hibprune.attribution.methods import Random
from hibprune.attribution.session import Loss, Sample, Session, scores_of
from hibprune.models.units import units_of
from hibprune.records.units import Pool, Scores


def attribute(
    method: Random,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
    pool: Pool = "head",
) -> Scores:
    """Draw a score for every unit from the session's seed."""
    units = units_of(model, pool)
    drawn = np.random.default_rng(session.seed).uniform(size=len(units))
    return scores_of(method, model, (), [tuple(float(value) for value in drawn)], units)
