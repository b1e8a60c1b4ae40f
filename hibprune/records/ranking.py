"""Whether the scores of heads rank them at all, or are equal, or noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hibprune.records.statistics import CONFIDENCE

RankingFault = Literal["equal", "unstable", "noise"]
"""Why a ranking says nothing: scores are equal but for rounding; halves of the samples rank the
heads no more alike than chance would; heads differ by no more than the samples of one do."""

EQUAL = 1e-6
"""Scores that differ by less, relative to their size, differ by rounding in single precision."""
SETTLED = 0.7
"""A split-half correlation that noise does not reach."""


def ranking_fault(
    per_sample: Sequence[Sequence[float]], split_half: float | None
) -> RankingFault | None:
    """Why scores (samples, heads) rank no heads, or None where they do.

    A single row, such as the norms of weights, has no noise to be told from.
    """
    scores = np.asarray(per_sample, dtype=np.float64)
    means = scores.mean(axis=0)
    if len(means) < 2:
        return None
    if scores_equal(means):
        return "equal"
    if split_half is not None:
        if split_half < chance_agreement(len(means)):
            return "unstable"
        if split_half >= SETTLED:
            return None
    return "noise" if len(scores) > 1 and not _heads_differ(scores) else None


def scores_equal(scores: Sequence[float] | np.ndarray) -> bool:
    """Whether scores are the same but for rounding."""
    values = np.asarray(scores, dtype=np.float64)
    return bool(np.ptp(values) <= EQUAL * np.abs(values).max())


def chance_agreement(heads: int) -> float:
    """The split-half correlation that scores without meaning stay below, 19 times of 20.

    Found by trying: the mean over 20 splits of normal or heavy-tailed noise, of 4 to 144 heads and
    4 to 200 samples, has its 95th percentile at 1.0 to 1.3 by the root of the heads less one. Below
    0.1 halves agree on next to nothing however many heads there are.
    """
    return max(0.1, 1.2 / np.sqrt(heads - 1)) if heads > 1 else 1.0


def _heads_differ(scores: np.ndarray) -> bool:
    """Two-way analysis of variance (Fisher 1925): do heads differ by more than samples scatter?"""
    from scipy.stats import f

    samples, heads = scores.shape
    of_heads = scores.mean(axis=0, keepdims=True)
    rest = scores - of_heads - scores.mean(axis=1, keepdims=True) + scores.mean()
    freedom = (heads - 1, (heads - 1) * (samples - 1))
    between = samples * float(np.square(of_heads - scores.mean()).sum()) / freedom[0]
    within = float(np.square(rest).sum()) / freedom[1]
    return bool(between > within * float(f.ppf(CONFIDENCE, *freedom)))
