"""The fit of one matrix: what comes out of units that stay, to what should come out.

Clips held out of the fit tell how strong the ridge is to be, and whether the fit helps at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from hibprune.compression.layer_work import HELD_OUT_EVERY
from hibprune.compression.least_squares import (
    Solution,
    best_bias,
    best_strength,
    fitted,
    scaled,
)
from hibprune.compression.settings import RepairKind
from hibprune.errors import UserError
from hibprune.models.moments import Moments
from hibprune.records.repair import SublayerRepair
from hibprune.records.units import Kind, Unit


class Part(Protocol):
    """A part of a model whose units are read by one matrix, its writer.

    `blocks` are each unit's columns of it; that of a convolution is its weight with the windows
    unfolded.
    """

    @property
    def layer(self) -> int: ...
    @property
    def stack(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def name(self) -> str: ...
    @property
    def units(self) -> tuple[Unit, ...]: ...
    @property
    def writer(self) -> nn.Linear | nn.Conv1d: ...
    @property
    def blocks(self) -> list[list[int]]: ...


def require_frames(part: Part, kind: RepairKind, frames: int, clips: int) -> None:
    """See that `frames` of `clips` clips that are fitted on tell what a fit wants to know.

    Raises:
        UserError: they are too few; says about how many clips it takes.
    """
    unknowns = {
        "mean": 0,
        "scale": len(part.units),
        "least-squares": part.writer.weight.flatten(1).shape[1],
    }[kind]
    if frames <= unknowns:
        wanted = int((unknowns + 1) * clips / max(1, frames)) + 1
        wanted = wanted * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1) + 1
        raise UserError(
            f"removal.repair: {frames} frames of calibration data are too few to fit the "
            f"{unknowns} unknowns of layer {part.layer}'s {part.name}: give it about "
            f"{wanted} samples of this length (calibration.repair_samples), or set "
            "removal.repair to mean"
        )


def fit_writer(
    part: Part, removed: int, fit: Moments, held: Moments, kind: RepairKind, everything: bool
) -> SublayerRepair:
    """Fit a part's weights, in place, where that helps on what was held out.

    `everything` takes in the clips held out, once they have told.

    Raises:
        UserError: what is to be fitted is not finite.
    """
    if not fit.finite:
        raise UserError(
            f"removal.repair: layer {part.layer}'s {part.name} gives out NaN or infinite "
            "values on the calibration clips: see whether the model works on them unpruned"
        )
    # Without clips held out, the fit itself has to tell.
    judge = held if held.weight else fit
    writer = part.writer
    old_error = judge.error(writer.weight.flatten(1), writer.bias)

    def error(strength: float) -> float:
        return judge.error(*_solution(fit, part, kind, strength))

    if kind == "least-squares":
        strength, new_error = best_strength(error)
    else:
        strength, new_error = 0.0, error(0.0)
    refitted = new_error < old_error
    if refitted:
        # What held-out clips have chosen is fitted on all of them.
        moments = fit + held if everything else fit
        weight, bias = _solution(moments, part, kind, strength)
        writer.weight.copy_(weight.view_as(writer.weight))
        if bias is not None and writer.bias is not None:
            writer.bias.copy_(bias)
    spread = judge.spread() or 1.0
    return SublayerRepair(
        layer=part.layer,
        stack=part.stack,
        kind=part.kind,
        name=part.name,
        removed=removed,
        kept=len(part.units),
        strength=strength if refitted and kind == "least-squares" else None,
        before=old_error / spread,
        after=min(new_error, old_error) / spread,
        refitted=refitted,
    )


def _solution(moments: Moments, part: Part, kind: RepairKind, strength: float) -> Solution:
    weight, with_bias = part.writer.weight.flatten(1), part.writer.bias is not None
    if kind == "scale":
        return scaled(moments, weight, part.blocks, with_bias)
    if kind == "mean":
        return weight.double(), best_bias(moments, weight) if with_bias else None
    return fitted(moments, weight, strength, with_bias)


def first_affected(before: Sequence[Part], after: Sequence[Part]) -> int | None:
    """Place of the first part that units are gone from."""
    for place, (whole, smaller) in enumerate(zip(before, after, strict=True)):
        if len(whole.units) > len(smaller.units):
            return place
    return None
