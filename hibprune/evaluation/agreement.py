"""How far a variant in lower precision is from the same model in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from hibprune.errors import UserError
from hibprune.records.precision import Agreement

Example = TypeVar("Example")


class Difference(NamedTuple):
    """Largest absolute difference of outputs, and that as a share of the largest output."""

    max_abs: float
    relative: float


def largest_difference(
    reference: Callable[[Example], np.ndarray],
    variant: Callable[[Example], np.ndarray],
    examples: Iterable[Example],
) -> Difference:
    """Compare what a model in fp32 and a variant give out, logits or states, for each example.

    A number that only one of them has, where the other has none, is infinitely far.

    Raises:
        UserError: they give out different shapes.
    """
    difference = scale = 0.0
    for example in examples:
        wanted, found = (np.asarray(one(example), np.float64) for one in (reference, variant))
        if wanted.shape != found.shape:
            raise UserError(
                f"in lower precision the model gives outputs of shape {found.shape} where fp32 "
                f"gives {wanted.shape}: export again"
            )
        if wanted.size:
            difference = max(difference, float(_distances(wanted, found).max()))
            scale = max(scale, float(np.nan_to_num(np.abs(wanted), posinf=0).max()))
    return Difference(difference, difference / scale if scale else difference)


def _distances(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    same = (wanted == found) | (np.isnan(wanted) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        distances = np.abs(wanted - found)
    return np.where(same, 0, np.nan_to_num(distances, nan=np.inf, posinf=np.inf))


def agreement(
    references: Sequence[object], predictions: Sequence[object], difference: Difference | None
) -> Agreement:
    """What a variant predicts against what fp32 predicts, clip by clip, at least one of them.

    `difference` is None where there are no logits to compare.
    """
    equal = [one == other for one, other in zip(references, predictions, strict=True)]
    return Agreement(
        n=len(equal),
        equal=sum(equal) / len(equal),
        max_abs_diff=None if difference is None else difference.max_abs,
        relative_diff=None if difference is None else difference.relative,
    )
