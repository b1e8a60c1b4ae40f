"""How certain the choice of heads is: sorted scores, their standard errors and the cut."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hibprune.records.ranking import scores_equal
from hibprune.records.units import Head, Plan, Scores


class Spread(NamedTuple):
    """Heads from the lowest score to the highest; `errors` is None where there is no spread."""

    heads: tuple[Head, ...]
    means: np.ndarray
    errors: np.ndarray | None
    removed: np.ndarray


def spread_of(scores: Scores, plan: Plan) -> Spread:
    """Mean score and its standard error over samples for every head, sorted."""
    per_sample = np.asarray(scores.per_sample, dtype=np.float64)
    n = len(per_sample)
    means = per_sample.mean(axis=0)
    order = np.argsort(means, kind="stable")
    removed = set(plan.removed)
    return Spread(
        heads=tuple(scores.heads[i] for i in order),
        means=means[order],
        errors=per_sample.std(axis=0, ddof=1)[order] / np.sqrt(n) if n > 1 else None,
        removed=np.array([scores.heads[i] in removed for i in order], dtype=bool),
    )


def cut_of(spread: Spread) -> float | None:
    """The score between removed and kept heads; None where no single score parts them."""
    removed, kept = spread.means[spread.removed], spread.means[~spread.removed]
    if not len(removed) or not len(kept) or removed.max() > kept.min():
        return None
    return float((removed.max() + kept.min()) / 2)


def heads_near_cut(spread: Spread) -> int | None:
    """How many heads lie within one standard error of the cut."""
    cut = cut_of(spread)
    if cut is None or spread.errors is None:
        return None
    return int(np.sum(np.abs(spread.means - cut) < spread.errors))


def score_limits(scores: Scores) -> tuple[float, float]:
    """The range that a picture of the mean scores is to span.

    Where they rank the heads, from the lowest to the highest. Where they say nothing, the range
    that single samples have, or half their size either way where these are equal too: small
    differences, drawn as large ones, would be taken for findings.
    """
    per_sample = np.asarray(scores.per_sample, dtype=np.float64)
    means = per_sample.mean(axis=0)
    low, high = float(means.min()), float(means.max())
    if scores.ranking_fault is not None:
        low, high = float(per_sample.min()), float(per_sample.max())
    return wide_enough(low, high)


def wide_enough(low: float, high: float) -> tuple[float, float]:
    """A range as it is, or half its size either way where its ends are equal but for rounding."""
    if not scores_equal([low, high]):
        return (low, high)
    middle = (low + high) / 2
    reach = abs(middle) / 2 or 0.5
    return (middle - reach, middle + reach)
