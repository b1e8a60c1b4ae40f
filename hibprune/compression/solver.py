"""The mix of units whose removal adds least error, so that a model costs no more than asked.

Units of a kind in a layer go in a fixed order, each adding no less error than the one before. The
next to go is the one that adds least error for what it saves (greedy); what that overshoots is
given back, and exchanges that lower the error are made until there is none (local search). All of
it is about numbers: how errors and costs come about is the callers' to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Counts = tuple[int, ...]
"""How many units, group by group."""

MAX_EXCHANGES = 200
"""Exchanges of the local search; on the models tried it ends after a few."""


@dataclass(frozen=True)
class Group:
    """Interchangeable units: what each adds in error when it goes, in the order in which they go.

    Errors do not fall. `keep` is how many have to stay.
    """

    errors: tuple[float, ...]
    keep: int = 0

    @property
    def removable(self) -> int:
        """How many may go."""
        return max(0, len(self.errors) - self.keep)


@dataclass(frozen=True)
class Cost:
    """What a model costs with nᵢ units left in group i: c + Σ aᵢ·nᵢ + Σ bᵢⱼ·nᵢ·nⱼ + Σ tᵢ[nᵢ].

    Products are there where a weight lies between two groups, as between two convolutions; tables,
    from 0 units to all and never falling, where a cost is no straight line.
    """

    constant: float
    single: tuple[float, ...]
    pairs: Mapping[tuple[int, int], float] = field(default_factory=dict)
    tables: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def of(self, left: Sequence[int]) -> float:
        """The cost with so many units left in each group."""
        alone = sum(a * n for a, n in zip(self.single, left, strict=True))
        both = sum(b * left[i] * left[j] for (i, j), b in self.pairs.items())
        return self.constant + alone + both + sum(t[left[i]] for i, t in self.tables.items())

    def saved(
        self, left: Sequence[int], place: int, neighbours: Sequence[tuple[int, float]]
    ) -> float:
        """What one unit less in a group saves, which shares weights with `neighbours`."""
        saved = self.single[place] + sum(b * left[j] for j, b in neighbours)
        if place in self.tables:
            own, number = self.tables[place], left[place]
            saved += own[number] - own[number - 1]
        return saved

    @property
    def neighbours(self) -> list[list[tuple[int, float]]]:
        """For each group the groups it shares weights with, and their b."""
        found: list[list[tuple[int, float]]] = [[] for _ in self.single]
        for (i, j), b in self.pairs.items():
            found[i].append((j, b))
            found[j].append((i, b))
        return found


def least_cost(groups: Sequence[Group], cost: Cost) -> float:
    """The cost when all is gone that may go."""
    return cost.of([len(group.errors) - group.removable for group in groups])


def added_error(groups: Sequence[Group], gone: Sequence[int]) -> float:
    """The error of a mix: the sum of what its units add."""
    return sum(sum(group.errors[:n]) for group, n in zip(groups, gone, strict=True))


def cheapest_mix(groups: Sequence[Group], cost: Cost, limit: float) -> Counts:
    """How many units go from each group so that the cost is at most `limit`.

    Raises:
        ValueError: no removal gets there.
    """
    if least_cost(groups, cost) > limit:
        raise ValueError(f"{limit} cannot be reached: the least is {least_cost(groups, cost)}")
    search = _Search(groups, cost, limit)
    gone = search.given_back(search.taken([0] * len(groups)))
    error = added_error(groups, gone)
    for _ in range(MAX_EXCHANGES):
        better = min(
            search.neighbours(gone), key=lambda other: added_error(groups, other), default=gone
        )
        if added_error(groups, better) >= error:
            break
        gone, error = better, added_error(groups, better)
    return tuple(gone)


@dataclass(frozen=True)
class _Search:
    groups: Sequence[Group]
    cost: Cost
    limit: float

    def taken(self, gone: Sequence[int], apart_from: int | None = None) -> list[int]:
        """Take units, least error for what they save first, until the cost is within the limit.

        None of the group `apart_from`, unless there is nothing else.
        """
        gone, neighbours = list(gone), self.cost.neighbours
        left = [len(g.errors) - n for g, n in zip(self.groups, gone, strict=True)]
        value = self.cost.of(left)
        while value > self.limit:
            best, least, saves = -1, float("inf"), 0.0
            for place, group in enumerate(self.groups):
                if gone[place] >= group.removable or place == apart_from:
                    continue
                saved = self.cost.saved(left, place, neighbours[place])
                ratio = group.errors[gone[place]] / saved if saved > 0 else float("inf")
                if best < 0 or ratio < least:
                    best, least, saves = place, ratio, saved
            if best < 0 and apart_from is None:
                # Nothing is left to take: rounding alone is in the way.
                break
            if best < 0:
                apart_from = None
                continue
            gone[best] += 1
            left[best] -= 1
            value -= saves
        return gone

    def given_back(self, gone: Sequence[int], apart_from: int | None = None) -> list[int]:
        """Give units back, those of most error first, as long as the cost stays within the limit.

        None of the group `apart_from`.
        """
        gone = list(gone)
        while True:
            best = max(
                (
                    place
                    for place in range(len(gone))
                    if gone[place] and place != apart_from and self._fits(gone, place)
                ),
                key=lambda place: self.groups[place].errors[gone[place] - 1],
                default=None,
            )
            if best is None:
                return gone
            gone[best] -= 1

    def _fits(self, gone: Sequence[int], place: int) -> bool:
        left = [len(g.errors) - n for g, n in zip(self.groups, gone, strict=True)]
        left[place] += 1
        return self.cost.of(left) <= self.limit

    def neighbours(self, gone: Sequence[int]) -> Iterator[list[int]]:
        """Mixes with one unit of a group back and others in its place, or the other way round."""
        for place, group in enumerate(self.groups):
            other = list(gone)
            if gone[place]:
                other[place] -= 1
                yield self.given_back(self.taken(other, apart_from=place))
            if gone[place] < group.removable:
                other[place] = gone[place] + 1
                yield self.given_back(self.given_back(other, apart_from=place))
