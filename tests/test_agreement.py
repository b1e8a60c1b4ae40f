"""Agreement of a lower precision with fp32, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hibprune.errors import UserError
from hibprune.evaluation.agreement import Difference, agreement, largest_difference
from hibprune.records.precision import Agreement


def giving(*outputs: list[float]) -> Callable[[int], np.ndarray]:
    """A model that gives out the n-th of these for the n-th example."""
    return lambda number: np.array([outputs[number]], np.float32)


@pytest.mark.parametrize(
    ("reference", "variant", "wanted"),
    [
        (([1, -4], [2, 0]), ([1.5, -4], [2, -0.25]), (0.5, 0.125)),
        (([1, -4], [2, 0]), ([1, -4], [2, 0]), (0, 0)),
        (([0, 0],), ([0, 0.5],), (0.5, 0.5)),
        (([1, np.nan],), ([1, np.nan],), (0, 0)),
        (([1, np.inf],), ([2, np.inf],), (1, 1)),
        (([1, 2],), ([1, np.nan],), (np.inf, np.inf)),
        (([1, np.nan],), ([1, 2],), (np.inf, np.inf)),
        (([1, np.inf],), ([1, -np.inf],), (np.inf, np.inf)),
        (([2, 2], [1, 4]), ([np.nan, 2], [1, 4]), (np.inf, np.inf)),
        (([],), ([],), (0, 0)),
    ],
)
def test_largest_difference(
    reference: tuple[list[float], ...],
    variant: tuple[list[float], ...],
    wanted: tuple[float, float],
) -> None:
    examples = range(len(reference))
    assert largest_difference(giving(*reference), giving(*variant), examples) == wanted


def test_outputs_of_another_shape_are_told() -> None:
    with pytest.raises(UserError, match=r"outputs of shape \(1, 1\) where fp32 gives \(1, 2\)"):
        largest_difference(giving([1, 2]), giving([1]), [0])


def test_agreement() -> None:
    said = ["yes", {"action": "on"}, "", "go"]
    other = ["yes", {"action": "off"}, "", "Go"]
    assert agreement(said, other, Difference(0.5, 0.125)) == Agreement(
        n=4, equal=0.5, max_abs_diff=0.5, relative_diff=0.125
    )
    assert agreement(said, said, None) == Agreement(n=4, equal=1)
    with pytest.raises(ValueError, match="shorter"):
        agreement(said, other[:3], None)
