"""What is saved in time by fewer units of a kind and by lower ranks, measured on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from operator import truediv
from statistics import median

from pydantic import Field

from hibprune.records.base import Record
from hibprune.records.manifest import Machine
from hibprune.records.medium import Length
from hibprune.records.units import Kind


class LevelTimes(Record):
    """Milliseconds where all layers of a stack are alike cut down, and of the whole model.

    `left` is how many units of the kind each layer keeps; the rounds of both took turns.
    """

    kind: Kind
    stack: str
    left: dict[int, int]
    times: tuple[float, ...]
    whole: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The time as a share of the whole model's, the median over pairs of rounds.

        What else runs on the machine comes and goes: both of a pair had much the same of it.
        """
        return _ratio(self.times, self.whole)


class ProjectionTimes(Record):
    """Milliseconds of one projection alone, as one matrix or as two of a `rank`."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    rank: int | None = Field(ge=1)
    times: tuple[float, ...]


class RankTimes(Record):
    """Times of single projections, and of the whole model in the same rounds."""

    whole: tuple[float, ...]
    projections: tuple[ProjectionTimes, ...]


class LatencyTable(Record):
    """Times of a `variant` at one length, cut down kind by kind, on this machine.

    `original` are times of the original in fp32 and `whole`, in the same rounds, those of the
    variant with nothing removed. `ranks` are there where projections may become two matrices.
    """

    variant: str
    at: Length
    threads: int
    machine: Machine
    original: tuple[float, ...]
    whole: tuple[float, ...]
    levels: tuple[LevelTimes, ...]
    ranks: RankTimes | None = None

    @property
    def original_milliseconds(self) -> float:
        """The original's time beside that of the variant, by pairs of rounds."""
        return _ratio(self.original, self.whole) * self.whole_milliseconds

    @property
    def whole_milliseconds(self) -> float:
        """The variant's median with nothing removed."""
        return median(self.whole)

    def saved(self, level: LevelTimes) -> float:
        """Milliseconds that a level saves; not less than none."""
        return max(0.0, 1 - level.ratio) * self.whole_milliseconds

    def of_projection(self, one: ProjectionTimes) -> float:
        """Milliseconds of a projection beside those of the variant, by pairs of rounds.

        Raises:
            ValueError: there are no times of projections.
        """
        if self.ranks is None:
            raise ValueError("the table knows no ranks")
        return _ratio(one.times, self.ranks.whole) * self.whole_milliseconds


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    return float(median(map(truediv, ones, others)))
