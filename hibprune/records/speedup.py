"""A model as fast as asked: what was tried, what was foretold and what was measured."""

from __future__ import annotations

from hibprune.records.base import Record
from hibprune.records.medium import Length
from hibprune.records.units import Pool, Unit


class SpeedTry(Record):
    """One mix of units: how many of each pool went, and how many times as fast the model was.

    `foretold` is by the latency table, `measured` by an export against the original.
    """

    removed: dict[Pool, int]
    foretold: float
    measured: float


class SpeedFound(Record):
    """How the mix was found that is as fast as asked, at one length of input."""

    at: Length
    tries: tuple[SpeedTry, ...]
    taken: int

    @property
    def chosen(self) -> SpeedTry:
        """The try whose units went."""
        return self.tries[self.taken]


class SpeedSearch(Record):
    """What was found, with the units that go."""

    found: SpeedFound
    units: tuple[Unit, ...]
