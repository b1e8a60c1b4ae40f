"""A model as fast as asked: what was tried, what was foretold and what was measured."""

from __future__ import annotations

from pydantic import Field

from hibprune.records.base import Record
from hibprune.records.medium import Length
from hibprune.records.units import Pool, Unit


class SpeedTry(Record):
    """One mix: how many units of each pool went, and how many times as fast the model was.

    `factored` is how many projections were two matrices. `foretold` is by the latency table,
    `measured` by an export against the original.
    """

    removed: dict[Pool, int]
    foretold: float
    measured: float
    factored: int = 0


class SpeedFound(Record):
    """How the mix was found that is as fast as asked, at one length of input."""

    at: Length
    tries: tuple[SpeedTry, ...]
    taken: int

    @property
    def chosen(self) -> SpeedTry:
        """The try whose mix was taken."""
        return self.tries[self.taken]


class SpeedSearch(Record):
    """What was found, with the units that go, and ranks by layer and path as plans have them."""

    found: SpeedFound
    units: tuple[Unit, ...]
    ranks: dict[int, dict[str, int]] = Field(default_factory=dict)
