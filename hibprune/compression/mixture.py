"""Mixes of units of all kinds for limits of one cost, which is counted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hibprune.compression.solver import Cost, Group, cheapest_mix
from hibprune.compression.unit_costs import Place, counted_cost, groups_of, in_order
from hibprune.records.units import Kind, Scores, Unit

TRIES = 10
"""Of coming below a limit where counts are not quite sums of what units cost."""


@dataclass(frozen=True)
class Mixture:
    """What may go, with the errors that adds, and `count`: the cost of the model without units."""

    places: Mapping[Place, tuple[Unit, ...]]
    groups: tuple[Group, ...]
    count: Callable[[Sequence[Unit]], float]

    @classmethod
    def of(
        cls,
        scores: Sequence[Scores],
        weights: Mapping[Kind, float],
        min_heads: int,
        count: Callable[[Sequence[Unit]], float],
    ) -> Mixture:
        """By the scores of every kind that may go; no layer keeps fewer than `min_heads` heads.

        Raises:
            UserError: a score is not finite.
        """
        return cls(in_order(scores), groups_of(scores, weights, min_heads), count)

    @cached_property
    def cost(self) -> Cost:
        """What is left of each place, and what the model then costs."""
        return counted_cost(self.places, self.count)

    @cached_property
    def whole(self) -> float:
        """The cost when nothing goes."""
        return self.count(())

    def cheapest(self, cost: Cost, limit: float) -> tuple[tuple[Unit, ...], float]:
        """The units of least error without which `cost` is at most `limit`, and what it then is.

        Raises:
            ValueError: no removal gets there.
        """
        gone = cheapest_mix(self.groups, cost, limit)
        places = list(self.places.values())
        units = [unit for number, own in zip(gone, places, strict=True) for unit in own[:number]]
        left = [len(own) - number for number, own in zip(gone, places, strict=True)]
        return tuple(units), cost.of(left)

    def within(self, limit: float) -> tuple[Unit, ...]:
        """The units of least error without which the model, counted, costs at most `limit`.

        Raises:
            ValueError: no removal gets there.
        """
        aim = limit
        for _ in range(TRIES):
            units, _ = self.cheapest(self.cost, aim)
            found = self.count(units)
            if found <= limit:
                return units
            aim -= found - limit
        raise ValueError(f"{limit} is not reached: {found} is left")
