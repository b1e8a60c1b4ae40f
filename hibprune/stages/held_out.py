"""Calibration clips kept apart where a budget is a loss of the metric."""

from __future__ import annotations

from hibprune.data import Selection
from hibprune.errors import UserError


def held_out_of(
    drawn: Selection, scored: Selection, repaired: Selection
) -> tuple[Selection, Selection, Selection]:
    """The last quarter of the calibration clips apart from those that are scored and repaired on.

    Raises:
        UserError: there are too few of them, or they have no labels.
    """
    number = len(drawn.utterances) // 4
    if not number:
        raise UserError(
            f"budget.metric_drop: a quarter of {len(drawn.utterances)} calibration clips is none: "
            "raise calibration.samples"
        )
    rest = len(drawn.utterances) - number
    if any(clip.target is None for clip in drawn.utterances[rest:]):
        raise UserError(
            "budget.metric_drop: the calibration clips have no labels: set calibration.labels to "
            "dataset, or give another budget"
        )
    return scored.first(rest), repaired.first(rest), drawn.after(rest)
