"""Repair in closed form: the weights that stay are fitted to what the model did before.

Sublayer by sublayer from the input up, each writer of the pruned model S is fitted by least squares
(least_squares.py) to what it should write so that the residual stream comes out as the original's:

    u = (r_T + scale · (W z_T + b) − r_S) / scale

with r the stream that the output is added to, so that what removal has shifted further down is put
right as well. Sublayers behind the first removal are fitted also where nothing of theirs went. Only
forward passes are needed, a layer at a time on kept hidden states, and no labels. Where the
sublayer has no bias, none is made: what then stays of a shift is left to the sublayers above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hibprune.compression.layer_work import HELD_OUT_EVERY, LayerWork, held_out
from hibprune.compression.least_squares import (
    Solution,
    best_bias,
    best_strength,
    fitted,
    scaled,
)
from hibprune.compression.refine import refine_layer, tried
from hibprune.compression.settings import RepairKind
from hibprune.errors import UserError
from hibprune.execution.processes import ALONE, Ranks
from hibprune.models.attention import frozen
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import (
    CalibrationClip,
    ClipBatch,
    LayerwiseEncoder,
    clip_batches,
    encoder_layers,
    unchunked,
)
from hibprune.models.moments import Moments
from hibprune.models.sublayers import Sublayer, sublayers
from hibprune.records.repair import LayerRefinement, Repair, SublayerRepair


def repair(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    kind: RepairKind,
    scratch: Path,
    room_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    refine_steps: int = 0,
    ranks: Ranks = ALONE,
) -> Repair:
    """Fit the weights of a pruned model, in place, to what the original does on some clips.

    Hidden states and second moments take up to `room_bytes` of memory; states beyond that lie in
    files in `scratch`, which is the caller's to remove. Several processes that are given the same
    take a share of the work each, and come to the same weights. A model that lost nothing is left
    alone.

    Raises:
        UserError: there are fewer frames than a fit has unknowns (says how many clips it takes), or
            a model gives out NaN or infinite values.
    """
    before, after = sublayers(original), sublayers(pruned)
    first = _first_affected(before, after)
    batches = clip_batches(original, clips)
    if first is None:
        return _report(kind, clips, batches, [], [])
    affected = [
        [sublayer for part, sublayer in enumerate(own) if (layer, part) >= first]
        for layer, own in enumerate(after)
    ]
    _require_frames([one for own in affected for one in own], kind, batches)
    found: list[SublayerRepair] = []
    refined: list[LayerRefinement] = []
    with torch.no_grad(), ExitStack() as stack:
        for model in (original, pruned):
            stack.enter_context(frozen(model))
            stack.enter_context(unchunked(model))
        states = HiddenStates(scratch, max(0, room_bytes - _moments_bytes(after)))
        encoder = LayerwiseEncoder(original, states)
        own_batches = ranks.share(batches)
        for batch in own_batches:
            states.put(f"original/{batch.number}", encoder.start(batch, clips))
        for layer, own in enumerate(after):
            module = encoder_layers(pruned)[layer]
            work = LayerWork(layer, encoder, module, own_batches, states, ranks)
            if not affected[layer]:
                work.pass_original(())
            else:
                if layer == first[0]:
                    work.part_ways()
                work.pass_original(before[layer])
                gone = [
                    len(whole.units) - len(smaller.units)
                    for whole, smaller in zip(before[layer], own, strict=True)
                ]
                affected_parts = [part for part in range(len(own)) if (layer, part) >= first]
                fit = partial(_fitted_layer, work, own, gone, affected_parts, kind)
                trial = _tried(work, own, fit, refine_steps) if refine_steps else None
                found += fit(everything=True)
                if trial is not None:
                    refine_layer(work, own, trial, refine_steps)
                    refined.append(trial)
                work.drop_targets(len(own))
                work.pass_repaired()
            progress(layer + 1, len(after))
    return _report(kind, clips, batches, found, refined)


def _fitted_layer(
    work: LayerWork,
    own: Sequence[Sublayer],
    gone: Sequence[int],
    parts: Sequence[int],
    kind: RepairKind,
    everything: bool,
) -> list[SublayerRepair]:
    """Fit a layer's sublayers, one after the other."""
    return [_repaired(work, part, own[part], gone[part], kind, everything) for part in parts]


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


def _first_affected(
    before: Sequence[Sequence[Sublayer]], after: Sequence[Sequence[Sublayer]]
) -> tuple[int, int] | None:
    """Layer and part of the first sublayer that units are gone from."""
    for layer, (whole, smaller) in enumerate(zip(before, after, strict=True)):
        for part, (one, other) in enumerate(zip(whole, smaller, strict=True)):
            if len(one.units) > len(other.units):
                return layer, part
    return None


def _moments_bytes(parts: Sequence[Sequence[Sublayer]]) -> int:
    """What sums take up in float64: of clips fitted on and held out, and while they are solved."""
    sizes = [one.writer.in_features for own in parts for one in own]
    rows = [one.writer.out_features for own in parts for one in own]
    return 5 * 8 * max(sizes) * (max(sizes) + max(rows))


def _require_frames(
    affected: Sequence[Sublayer], kind: RepairKind, batches: Sequence[ClipBatch]
) -> None:
    frames = sum(int(batch.counts[~held_out(batch)].sum()) for batch in batches)
    clips = sum(int((~held_out(batch)).sum()) for batch in batches)
    for sublayer in affected:
        unknowns = {
            "mean": 0,
            "scale": len(sublayer.units),
            "least-squares": sublayer.writer.in_features,
        }[kind]
        if frames <= unknowns:
            wanted = int((unknowns + 1) * clips / max(1, frames)) + 1
            wanted = wanted * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1) + 1
            raise UserError(
                f"removal.repair: {frames} frames of calibration data are too few to fit the "
                f"{unknowns} unknowns of layer {sublayer.layer}'s {sublayer.name}: give it about "
                f"{wanted} samples of this length (calibration.repair_samples), or set "
                "removal.repair to mean"
            )


def _report(
    kind: str,
    clips: Sequence[CalibrationClip],
    batches: Sequence[ClipBatch],
    found: Sequence[SublayerRepair],
    refined: Sequence[LayerRefinement],
) -> Repair:
    held = sum(int(held_out(batch).sum()) for batch in batches)
    frames = sum(int(batch.counts.sum()) for batch in batches)
    return Repair(
        kind=kind,
        clips=len(clips) - held,
        held_out=held,
        frames=frames,
        sublayers=tuple(found),
        refinements=tuple(refined),
    )


def _repaired(
    work: LayerWork,
    part: int,
    sublayer: Sublayer,
    removed: int,
    kind: RepairKind,
    everything: bool,
) -> SublayerRepair:
    """Fit one sublayer; `everything` takes in the clips held out, once they have told."""
    fit, held = work.moments(part, sublayer)
    if not fit.finite:
        raise UserError(
            f"removal.repair: layer {sublayer.layer}'s {sublayer.name} gives out NaN or infinite "
            "values on the calibration clips: see whether the model works on them unpruned"
        )
    # Without clips held out, the fit itself has to tell.
    judge = held if held.weight else fit
    writer = sublayer.writer
    old_error = judge.error(writer.weight, writer.bias)

    def error(strength: float) -> float:
        return judge.error(*_solution(fit, sublayer, kind, strength))

    if kind == "least-squares":
        strength, new_error = best_strength(error)
    else:
        strength, new_error = 0.0, error(0.0)
    refitted = new_error < old_error
    if refitted:
        # What held-out clips have chosen is fitted on all of them.
        moments = fit + held if everything else fit
        weight, bias = _solution(moments, sublayer, kind, strength)
        writer.weight.copy_(weight)
        if bias is not None:
            writer.bias.copy_(bias)
    spread = judge.spread() or 1.0
    return SublayerRepair(
        layer=sublayer.layer,
        kind=sublayer.kind,
        name=sublayer.name,
        removed=removed,
        kept=len(sublayer.units),
        strength=strength if refitted and kind == "least-squares" else None,
        before=old_error / spread,
        after=min(new_error, old_error) / spread,
        refitted=refitted,
    )


def _solution(moments: Moments, sublayer: Sublayer, kind: RepairKind, strength: float) -> Solution:
    weight, with_bias = sublayer.writer.weight, sublayer.writer.bias is not None
    if kind == "scale":
        return scaled(moments, weight, sublayer.blocks, with_bias)
    if kind == "mean":
        return weight.double(), best_bias(moments, weight) if with_bias else None
    return fitted(moments, weight, strength, with_bias)
