"""Mixes of units of all kinds for limits of one cost, which is counted once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from hibprune.compression.solver import Cost, Group, added_error, cheapest_mix
from hibprune.compression.unit_costs import Place, counted_cost, groups_of, in_order
from hibprune.records.units import Kind, Scores, Unit


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

    def cheapest(self, cost: Cost, limit: float) -> tuple[tuple[Unit, ...], float]:
        """The units of least error without which `cost` is at most `limit`, and what it then is.

        Raises:
            ValueError: no removal gets there.
        """
        gone = cheapest_mix(self.groups, cost, limit)
        places = list(self.places.values())
        units = [unit for number, own in zip(gone, places, strict=True) for unit in own[:number]]
        return tuple(units), cost.of(self.left(units))

    def error(self, units: Collection[Unit]) -> float:
        """What it adds that some units go, of each place those that go first."""
        return added_error(self.groups, self._gone(units))

    def left(self, units: Collection[Unit]) -> list[int]:
        """How many units stay of each place without some."""
        sizes = map(len, self.places.values())
        return [n - gone for n, gone in zip(sizes, self._gone(units), strict=True)]

    def _gone(self, units: Collection[Unit]) -> list[int]:
        chosen = set(units)
        return [sum(unit in chosen for unit in own) for own in self.places.values()]
