"""The mix of units whose removal adds least error, so that a model costs no more than asked.

Units of a kind in a layer go in a fixed order, each adding no less error than the one before. The
next to go is the one that adds least error for what it saves (greedy); what that overshoots is
given back, and exchanges that lower the error are made until there is none (local search). All of
it is about numbers: how errors and costs come about is the callers' to say.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
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


@dataclass(frozen=True)
class Option:
    """One of several ways to have something: what it costs, and the error that it adds."""

    cost: float
    error: float


def cheapest_options(choices: Sequence[Sequence[Option]], limit: float) -> Counts:
    """Which option to take of each choice, by place, so that together they cost at most `limit`.

    From what adds least error on along the lower convex hull of each choice, the step that adds
    least error for what it saves first (greedy); what that overshoots is given back, off the hulls
    as well, and exchanges that lower the error are made until there is none (local search).

    Raises:
        ValueError: no options get there.
    """
    least = sum(min(option.cost for option in choice) for choice in choices)
    if least > limit:
        raise ValueError(f"{limit} cannot be reached: the least is {least}")
    search = _OptionSearch([_Frontier.of(choice) for choice in choices], limit)
    taken = search.given_back(search.stepped([0] * len(choices)))
    error = search.error(taken)
    for _ in range(MAX_EXCHANGES):
        better = min(search.neighbours(taken), key=search.error, default=taken)
        if search.error(better) >= error:
            break
        taken, error = better, search.error(better)
    return tuple(one.places[step] for one, step in zip(search.frontiers, taken, strict=True))


@dataclass(frozen=True)
class _Frontier:
    """The options of a choice than which none costs and errs less, the dearest first.

    `hull` are those on the lower convex hull, by their step among these.
    """

    places: tuple[int, ...]
    options: tuple[Option, ...]
    hull: tuple[int, ...]

    @classmethod
    def of(cls, choice: Sequence[Option]) -> _Frontier:
        places: list[int] = []
        for place in sorted(range(len(choice)), key=lambda n: (choice[n].error, choice[n].cost)):
            if not places or choice[place].cost < choice[places[-1]].cost:
                places.append(place)
        own = tuple(choice[place] for place in places)
        hull: list[int] = []
        for step in range(len(own)):
            while len(hull) > 1 and _slope(own, hull[-2], step) <= _slope(own, *hull[-2:]):
                hull.pop()
            hull.append(step)
        return cls(tuple(places), own, tuple(hull))

    def down(self, step: int) -> int | None:
        """The next cheaper one on the hull."""
        place = bisect_right(self.hull, step)
        return self.hull[place] if place < len(self.hull) else None

    def up(self, step: int) -> int | None:
        """The next dearer one on the hull."""
        place = bisect_left(self.hull, step)
        return self.hull[place - 1] if place else None

    def best_within(self, step: int, room: float) -> int:
        """The one of least error that costs at most so much more."""
        most = self.options[step].cost + room
        return bisect_left(self.options, -most, 0, step, key=lambda option: -option.cost)


def _slope(options: Sequence[Option], dearer: int, cheaper: int) -> float:
    added = options[cheaper].error - options[dearer].error
    return added / (options[dearer].cost - options[cheaper].cost)


@dataclass(frozen=True)
class _OptionSearch:
    frontiers: Sequence[_Frontier]
    limit: float

    def error(self, taken: Sequence[int]) -> float:
        return sum(one.options[n].error for one, n in zip(self.frontiers, taken, strict=True))

    def cost(self, taken: Sequence[int]) -> float:
        return sum(one.options[n].cost for one, n in zip(self.frontiers, taken, strict=True))

    def stepped(self, taken: Sequence[int], apart_from: int | None = None) -> list[int]:
        """Step down the hulls until the cost is within the limit; that of `apart_from` last."""
        taken = list(taken)
        steps = [self._step(number, taken, apart_from) for number in range(len(taken))]
        while self.cost(taken) > self.limit:
            found = min((one for one in steps if one is not None), default=None)
            if found is None:
                # Rounding alone is in the way.
                break
            *_, number, after = found
            taken[number] = after
            steps[number] = self._step(number, taken, apart_from)
        return taken

    def _step(
        self, number: int, taken: Sequence[int], apart_from: int | None
    ) -> tuple[bool, float, int, int] | None:
        own = self.frontiers[number]
        after = own.down(taken[number])
        if after is None:
            return None
        return number == apart_from, _slope(own.options, taken[number], after), number, after

    def given_back(self, taken: Sequence[int], apart_from: int | None = None) -> list[int]:
        """Take options of less error as long as the cost stays within the limit."""
        taken = list(taken)
        while True:
            room = self.limit - self.cost(taken)
            if room < 0:
                return taken
            better = max(
                (
                    (own.options[taken[number]].error - own.options[step].error, number, step)
                    for number, own in enumerate(self.frontiers)
                    if number != apart_from
                    for step in [own.best_within(taken[number], room)]
                    if step < taken[number]
                ),
                default=None,
            )
            if better is None:
                return taken
            _, number, step = better
            taken[number] = step

    def neighbours(self, taken: Sequence[int]) -> Iterator[list[int]]:
        """Choices with one a step up or down its hull, and others made to fit."""
        for number, own in enumerate(self.frontiers):
            for step in (own.up(taken[number]), own.down(taken[number])):
                if step is not None:
                    moved = [*taken[:number], step, *taken[number + 1 :]]
                    yield self.given_back(self.stepped(moved, number), number)
