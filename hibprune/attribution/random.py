"""Uniform random scores: the baseline every ranking is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, MethodBase, Sample, Session
from hibprune.models.attention import heads_of
from hibprune.records.units import Scores


class Random(MethodBase):
    """Scores drawn uniformly from the recipe's seed."""

    method: Literal["random"]

    by_sample: ClassVar[bool] = False
    title: ClassVar[str] = "Uniform random scores, seeded: the baseline"
    source: ClassVar[str] = "every pruning paper"
    cost: ClassVar[str] = "none"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        heads = heads_of(model)
        drawn = np.random.default_rng(session.seed).uniform(size=len(heads))
        return self.scores(model, (), [tuple(float(value) for value in drawn)])
