"""Repair of the layers of a stack, one after the other, behind the first that lost a unit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from hibprune.compression.layer_work import LayerWork, held_out, layer_by_layer
from hibprune.compression.matrix_fit import first_affected, fit_writer, require_frames
from hibprune.compression.refine import refine_layer, tried
from hibprune.compression.settings import RepairKind
from hibprune.execution.processes import Processes
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import ClipBatch, Layerwise
from hibprune.models.sublayers import Sublayer
from hibprune.records.repair import LayerRefinement, SublayerRepair

Place = tuple[int, int]
"""A layer, and a sublayer of it by its place among those that run there."""


@dataclass(frozen=True)
class DamagedStack:
    """The sublayers of a stack, layer by layer, before and after removal.

    `first` is the place of the first that is to be fitted, None where none is.
    """

    before: Sequence[Sequence[Sublayer]]
    after: Sequence[Sequence[Sublayer]]
    first: Place | None

    @classmethod
    def of(
        cls, before: Sequence[Sequence[Sublayer]], after: Sequence[Sequence[Sublayer]]
    ) -> DamagedStack:
        """Fitted from the first sublayer on that units are gone from."""
        for layer, (whole, smaller) in enumerate(zip(before, after, strict=True)):
            part = first_affected(whole, smaller)
            if part is not None:
                return cls(before, after, (layer, part))
        return cls(before, after, None)

    def fitted_from(self, place: Place) -> DamagedStack:
        """The same where what goes in is changed, so that it is fitted from a place on, if later
        ones are."""
        return replace(self, first=min(place, self.first or place))

    def fitted(self, layer: int) -> list[int]:
        """The places of the sublayers of a layer that are to be fitted."""
        parts = range(len(self.after[layer]))
        return [part for part in parts if self.first and (layer, part) >= self.first]

    @property
    def all_fitted(self) -> list[Sublayer]:
        """All that are to be fitted."""
        return [own[part] for layer, own in enumerate(self.after) for part in self.fitted(layer)]

    @property
    def layers(self) -> int:
        """How many layers are walked through."""
        return len(self.after) if self.first else 0

    def gone(self, layer: int) -> list[int]:
        """How many units each sublayer of a layer has lost."""
        pairs = zip(self.before[layer], self.after[layer], strict=True)
        return [len(whole.units) - len(smaller.units) for whole, smaller in pairs]

    def require_frames(self, kind: RepairKind, batches: Sequence[ClipBatch]) -> None:
        """See that there are more frames to fit on than any fit has unknowns.

        Raises:
            UserError: there are not.
        """
        frames = sum(int(batch.counts[~held_out(batch)].sum()) for batch in batches)
        clips = sum(int((~held_out(batch)).sum()) for batch in batches)
        for sublayer in self.all_fitted:
            require_frames(sublayer, kind, frames, clips)


@dataclass(frozen=True)
class StackRepair:
    """The walk through a damaged stack.

    `states` hold what goes into the first layer of the original, by the number of a batch; where
    they differ before it, that of the pruned model as well (`parted`). `pruned` are its layers.
    """

    stack: DamagedStack
    through: Layerwise
    pruned: Sequence[nn.Module]
    batches: Sequence[ClipBatch]
    states: HiddenStates
    processes: Processes
    parted: bool = False

    def walk(
        self, kind: RepairKind, refine_steps: int, layer_done: Callable[[], None]
    ) -> tuple[list[SublayerRepair], list[LayerRefinement]]:
        """Fit every layer in place, and refine it where there are to be gradient steps."""
        found: list[SublayerRepair] = []
        refined: list[LayerRefinement] = []
        if self.stack.first is None:
            return found, refined
        for work in layer_by_layer(
            self.through,
            self.stack.before,
            self.pruned,
            self.batches,
            self.states,
            self.processes,
            self.stack.first[0],
            self.parted,
            layer_done,
        ):
            own = self.stack.after[work.layer]
            parts, gone = self.stack.fitted(work.layer), self.stack.gone(work.layer)
            fit = partial(_fitted_layer, work, own, gone, parts, kind)
            trial = _tried(work, own, fit, refine_steps) if refine_steps else None
            found += fit(everything=True)
            if trial is None:
                work.pass_repaired({part: own[part] for part in parts})
                continue
            refine_layer(work, own, trial, refine_steps)
            work.pass_repaired()
            refined.append(trial)
        return found, refined


def _fitted_layer(
    work: LayerWork,
    own: Sequence[Sublayer],
    gone: Sequence[int],
    parts: Sequence[int],
    kind: RepairKind,
    everything: bool,
) -> list[SublayerRepair]:
    """Fit a layer's sublayers, one after the other."""
    found: list[SublayerRepair] = []
    earlier: dict[int, Sublayer] = {}
    for part in parts:
        moments = work.moments(part, own[part], earlier)
        found.append(fit_writer(own[part], gone[part], *moments, kind, everything))
        earlier[part] = own[part]
    return found


def _tried(
    work: LayerWork, own: Sequence[Sublayer], fit: Callable[..., object], steps: int
) -> LayerRefinement:
    """What gradient steps behind a fit bring on clips that neither has seen; nothing moves."""
    old = [weight.detach().clone() for weight in work.pruned.parameters()]
    fit(everything=False)
    trial = tried(work, own, steps)
    for weight, earlier in zip(work.pruned.parameters(), old, strict=True):
        weight.copy_(earlier)
    return trial
