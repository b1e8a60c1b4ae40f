"""What repair found out, sublayer by sublayer."""

from __future__ import annotations

from collections.abc import Iterable

from hibprune.records.base import Record
from hibprune.records.units import ENCODER, Kind


class SublayerRepair(Record):
    """The fit of one sublayer's weights.

    Errors are mean squares over frames of clips held out of the fit, as a share of the variance of
    what the sublayer should have written: `before` with the weights that removal left, `after` with
    the fitted ones. `strength` is the ridge's α. Where `refitted` is false the fit did not help
    there, and the old weights stayed. `stack` is that of its units.
    """

    layer: int
    stack: str = ENCODER
    kind: Kind
    name: str
    removed: int
    kept: int
    strength: float | None
    before: float
    after: float
    refitted: bool


class LayerRefinement(Record):
    """Gradient steps on one layer, behind the fit.

    Errors are those of the residual stream on clips held out, as a share of its variance, summed
    over the layer's sublayers. `steps` is how many were taken: as many as held-out clips liked
    best, and none where steps did not help there and the fitted weights stayed.
    """

    layer: int
    before: float
    after: float
    steps: int

    @property
    def kept(self) -> bool:
        """Whether the weights moved."""
        return self.steps > 0


class Repair(Record):
    """A whole repair: its kind, the clips it was fitted on, those held out, and each sublayer.

    `frames` are those of the encoder, `tokens` those of the transcripts that a decoder was fed;
    either is 0 where nothing was fitted on it.
    """

    kind: str
    clips: int
    held_out: int
    frames: int
    tokens: int = 0
    sublayers: tuple[SublayerRepair, ...]
    refinements: tuple[LayerRefinement, ...] = ()

    @property
    def left_alone(self) -> tuple[SublayerRepair, ...]:
        """Sublayers whose fit did not help on clips held out of it."""
        return tuple(one for one in self.sublayers if not one.refitted)

    @property
    def refined(self) -> bool:
        """Whether gradient steps have moved anything."""
        return any(one.kept for one in self.refinements)


class FactoredProjection(Record):
    """A projection that became two matrices (rows, rank) and (rank, columns).

    `name` is its path within its layer of the encoder. `error` is what it misses of what it should
    give out, a mean square over frames of clips held out as a share of the variance; None where no
    clips were looked at.
    """

    layer: int
    name: str
    rows: int
    columns: int
    rank: int
    error: float | None = None

    @property
    def parameters_before(self) -> int:
        """Weights of the whole matrix."""
        return self.rows * self.columns

    @property
    def parameters_after(self) -> int:
        """Weights of both."""
        return self.rank * (self.rows + self.columns)


def factored_weights(factored: Iterable[FactoredProjection]) -> tuple[int, int]:
    """Weights of projections that became two matrices, before and after."""
    pairs = [(one.parameters_before, one.parameters_after) for one in factored]
    return sum(before for before, _ in pairs), sum(after for _, after in pairs)


class PrunedModel(Record):
    """The pruned model as saved: its files, and how its weights were repaired, if they were.

    `factored` are the projections that became two matrices, in the order of layers.
    """

    repair: Repair | None
    files: tuple[str, ...]
    factored: tuple[FactoredProjection, ...] = ()
