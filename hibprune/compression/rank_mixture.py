"""Mixes of units that go and of projections that become two matrices, for limits of one cost.

What a projection is worth at a rank hangs on the units that are gone, so that mixes of units alone
are made first, for limits spread from the least to the whole. Behind each of them ranks are chosen
that bring the cost down to what is asked; the pair of least error is taken. Units alone and ranks
alone are among the pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from hibprune.compression.mixture import Mixture
from hibprune.compression.rank_spectra import Spectra, Spectrum
from hibprune.compression.solver import Option, cheapest_options, least_cost
from hibprune.models.low_rank import ProjectionPlace
from hibprune.records.units import Unit

TRIES = 10
"""Of coming below a limit where counts are not quite sums of what units cost."""
GRID = 9
"""Mixes of units that ranks are chosen behind, nothing gone and all gone among them."""


@dataclass(frozen=True)
class Mix:
    """What goes: units, and of which rank projections become two matrices."""

    units: tuple[Unit, ...]
    ranks: Mapping[ProjectionPlace, int]
    error: float = 0.0


class CountMix(Protocol):
    """Counts what a model costs without units, and with projections of lower rank."""

    def __call__(
        self, units: Sequence[Unit], ranks: Mapping[ProjectionPlace, int] | None = None
    ) -> float: ...


@dataclass(frozen=True)
class Ranks:
    """What ranks of projections are worth beside units.

    `spectra` tells what each direction of a projection is worth without each of some mixes of
    units, `per_weight` what one of its weights costs, and `weight` what an error of a rank counts
    beside one of a unit.
    """

    spectra: Callable[[Sequence[Sequence[Unit]]], list[Spectra]]
    per_weight: float
    weight: float

    def options(self, spectrum: Spectrum) -> list[Option]:
        """A projection as it is, and then at rank 1, 2, … as long as that is cheaper."""
        options = [Option(self.per_weight * spectrum.weights, 0.0)]
        left = sum(spectrum.values)
        each = spectrum.rows + spectrum.columns
        for rank, value in enumerate(spectrum.values, start=1):
            if rank * each >= spectrum.weights:
                break
            left = max(0.0, left - value)
            options.append(Option(self.per_weight * rank * each, self.weight * left))
        return options


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
        lowest = least_cost(self.units.groups, self.units.cost)
        return min([lowest, *(cost + _least(choices) for _, cost, choices in self._grid)])

    def within(self, limit: float) -> Mix:
        """The mix of least error with which the model, counted, costs at most `limit`.

        Raises:
            ValueError: none gets there.
        """
        aim = limit
        for _ in range(TRIES):
            mix = min(self._mixes(aim), key=lambda one: one.error, default=None)
            if mix is None:
                raise ValueError(f"{aim} cannot be reached: the least is {self.least}")
            found = self.count(mix.units, mix.ranks)
            if found <= limit:
                return mix
            aim -= found - limit
        raise ValueError(f"{limit} is not reached: {found} is left")

    def _mixes(self, limit: float) -> Iterator[Mix]:
        if least_cost(self.units.groups, self.units.cost) <= limit:
            units, _ = self.units.cheapest(self.units.cost, limit)
            yield Mix(units, {}, self.units.error(units))
        for units, rest, choices in self._grid:
            own = list(choices.values())
            most = sum(options[0].cost for options in own)
            if rest + most <= limit or rest + _least(choices) > limit:
                continue
            taken = cheapest_options(own, limit - rest)
            lost = sum(options[rank].error for options, rank in zip(own, taken, strict=True))
            ranks = {place: rank for place, rank in zip(choices, taken, strict=True) if rank}
            yield Mix(units, ranks, self.units.error(units) + lost)

    @cached_property
    def _grid(self) -> list[tuple[tuple[Unit, ...], float, dict[ProjectionPlace, list[Option]]]]:
        """Mixes of units, what a model costs without them and without its projections, and those.

        None where there are to be no ranks.
        """
        if self.ranks is None:
            return []
        cost, whole = self.units.cost, self.units.whole
        least = least_cost(self.units.groups, cost)
        limits = [least + (whole - least) * step / (GRID - 1) for step in range(GRID - 1)]
        mixes = dict.fromkeys([*(self.units.cheapest(cost, one)[0] for one in limits), ()])
        found = []
        for units, spectra in zip(mixes, self.ranks.spectra(list(mixes)), strict=True):
            choices = {place: self.ranks.options(one) for place, one in spectra.items()}
            most = sum(options[0].cost for options in choices.values())
            found.append((units, self.units.foretold(units) - most, choices))
        return found


def _least(choices: Mapping[ProjectionPlace, Sequence[Option]]) -> float:
    return sum(min(option.cost for option in options) for options in choices.values())
