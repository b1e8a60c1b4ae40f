"""Mixes of units that go and of projections that become two matrices, for limits of one cost.

What a projection is worth at a rank hangs on the units that are gone, so that mixes of units alone
are made first, for limits spread up to the whole. Behind each of them ranks are chosen that bring
the cost down to what is asked; the pair of least error is taken. Units alone and ranks alone are
among the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from hibprune.compression.rank_spectra import Spectra, Spectrum
from hibprune.compression.solver import Cost, Option, cheapest_options, least_cost
from hibprune.compression.unit_mixture import Mixture
from hibprune.models.low_rank import ProjectionPlace
from hibprune.records.units import Unit

TRIES = 10
"""Of coming below a limit where counts are not quite sums of what units cost."""
GRID = 9
"""Mixes of units that ranks are chosen behind, nothing gone among them."""


@dataclass(frozen=True)
class Mix:
    """What goes: units, and of which rank projections become two matrices.

    `error` and `cost` are foretold.
    """

    units: tuple[Unit, ...]
    ranks: Mapping[ProjectionPlace, int]
    error: float = 0.0
    cost: float = 0.0


class CountMix(Protocol):
    """Counts what a model costs without units, and with projections of lower rank."""

    def __call__(
        self, units: Sequence[Unit], ranks: Mapping[ProjectionPlace, int] | None = None
    ) -> float: ...


class ProjectionCost(Protocol):
    """What a projection of some shape costs, as one matrix or as two of a rank."""

    def __call__(self, rows: int, columns: int, rank: int | None = None) -> float: ...


FindSpectra = Callable[[Sequence[Sequence[Unit]]], list[Spectra]]
"""Tells what each direction of a projection is worth without each of some mixes of units."""


def by_weights(per_weight: float) -> ProjectionCost:
    """The cost where each weight of a projection costs the same."""

    def cost(rows: int, columns: int, rank: int | None = None) -> float:
        return per_weight * (rows * columns if rank is None else rank * (rows + columns))

    return cost


@dataclass(frozen=True)
class Ranks:
    """What ranks of projections are worth beside units.

    `cost` is what a projection costs, and `weight` what an error of a rank counts beside one of a
    unit.
    """

    spectra: FindSpectra
    cost: ProjectionCost
    weight: float

    def options(self, spectrum: Spectrum) -> list[Option]:
        """A projection as it is, and then at rank 1, 2, … as long as those are fewer weights."""
        rows, columns = spectrum.rows, spectrum.columns
        options = [Option(self.cost(rows, columns), 0.0)]
        left = sum(spectrum.values)
        for rank, value in enumerate(spectrum.values, start=1):
            if rank * (rows + columns) >= spectrum.weights:
                break
            left = max(0.0, left - value)
            options.append(Option(self.cost(rows, columns, rank), self.weight * left))
        return options


@dataclass(frozen=True)
class Mixes:
    """Mixes of units, and of ranks as well where `ranks` are given, by what they are to cost.

    `cost` is that of units. Ranks are chosen behind mixes of units for limits from `lowest` to the
    whole, which lie the closer to it the higher `power` is.
    """

    units: Mixture
    cost: Cost
    ranks: Ranks | None = None
    lowest: float = 0.0
    power: float = 1.0

    @property
    def least(self) -> float:
        """The cost when all goes that may."""
        return min([self._least_of_units, *(rest + _least(own) for _, rest, own in self._grid)])

    def cheapest(self, limit: float) -> Mix:
        """The mix of least error that costs at most `limit`; of equals, units alone.

        Raises:
            ValueError: none gets there.
        """
        mix = min(self._mixes(limit), key=lambda one: one.error, default=None)
        if mix is None:
            raise ValueError(f"{limit} cannot be reached: the least is {self.least}")
        return mix

    @property
    def _least_of_units(self) -> float:
        return least_cost(self.units.groups, self.cost)

    def _mixes(self, limit: float) -> Iterator[Mix]:
        if self._least_of_units <= limit:
            units, found = self.units.cheapest(self.cost, limit)
            yield Mix(units, {}, self.units.error(units), found)
        for units, rest, choices in self._grid:
            own = list(choices.values())
            most = sum(options[0].cost for options in own)
            if rest + most <= limit or rest + _least(choices) > limit:
                continue
            # What rounding makes of the least there can be.
            taken = cheapest_options(own, max(limit - rest, _least(choices)))
            chosen = [options[rank] for options, rank in zip(own, taken, strict=True)]
            yield Mix(
                units,
                {place: rank for place, rank in zip(choices, taken, strict=True) if rank},
                self.units.error(units) + sum(option.error for option in chosen),
                rest + sum(option.cost for option in chosen),
            )

    @cached_property
    def _grid(self) -> list[tuple[tuple[Unit, ...], float, dict[ProjectionPlace, list[Option]]]]:
        """Mixes of units, what a model costs without them and without its projections, and those.

        None where there are to be no ranks.
        """
        if self.ranks is None:
            return []
        whole = self.cost.of([len(own) for own in self.units.places.values()])
        lowest = max(self.lowest, self._least_of_units)
        steps = [(step / (GRID - 1)) ** self.power for step in range(GRID - 1)]
        limits = [lowest + (whole - lowest) * step for step in steps]
        mixes = dict.fromkeys([*(self.units.cheapest(self.cost, one)[0] for one in limits), ()])
        found = []
        for units, spectra in zip(mixes, self.ranks.spectra(list(mixes)), strict=True):
            choices = {place: self.ranks.options(one) for place, one in spectra.items()}
            most = sum(options[0].cost for options in choices.values())
            rest = self.cost.of(self.units.left(units)) - most
            # Times are measured: projections alone can seem to take longer than the model does.
            found.append((units, max(0.0, rest), choices))
        return found


@dataclass(frozen=True)
class RankMixture:
    """Mixes of units, and of ranks as well where `ranks` are given; `count` counts them."""

    units: Mixture
    count: CountMix
    ranks: Ranks | None = None

    @cached_property
    def whole(self) -> float:
        """The cost when nothing goes."""
        return self.count(())

    @property
    def least(self) -> float:
        """The cost when all goes that may, as it is foretold."""
        return self._mixes.least

    def within(self, limit: float) -> Mix:
        """The mix of least error with which the model, counted, costs at most `limit`.

        Raises:
            ValueError: none gets there.
        """
        aim = limit
        for _ in range(TRIES):
            mix = self._mixes.cheapest(aim)
            found = self.count(mix.units, mix.ranks)
            if found <= limit:
                return mix
            aim -= found - limit
        raise ValueError(f"{limit} is not reached: {found} is left")

    @cached_property
    def _mixes(self) -> Mixes:
        return Mixes(self.units, self.units.cost, self.ranks)


def _least(choices: Mapping[ProjectionPlace, Sequence[Option]]) -> float:
    return sum(min(option.cost for option in options) for options in choices.values())
