"""Repair in closed form: the weights that stay are fitted to what the model did before.

Sublayer by sublayer from the input up, each writer of the pruned model S is fitted by least squares
(least_squares.py) to what it should write so that the residual stream comes out as the original's:

    u = (r_T + scale · (W z_T + b) − r_S) / scale

with r the stream that the output is added to, so that what removal has shifted further down is put
right as well. Sublayers behind the first removal are fitted also where nothing of theirs went. Only
forward passes are needed, a layer at a time on kept hidden states, and no labels. Where the
sublayer has no bias, none is made: what then stays of a shift is left to the sublayers above. Where
channels of a convolutional front end are gone, that is repaired first (front_end_repair.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hibprune.compression.front_end_repair import (
    front_end_affected,
    repair_front_end,
    require_windows,
)
from hibprune.compression.layer_work import LayerWork, held_out
from hibprune.compression.refine import refine_layer, tried
from hibprune.compression.settings import RepairKind
from hibprune.compression.writer_fit import Part, first_affected, fit_writer, require_frames
from hibprune.execution.processes import ALONE, Ranks
from hibprune.models.attention import frozen
from hibprune.models.front_end import front_end_parts
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import (
    CalibrationClip,
    ClipBatch,
    LayerwiseEncoder,
    clip_batches,
    encoder_layers,
    entering_states,
    unchunked,
)
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
    front_end = front_end_affected(original, pruned)
    first = (0, 0) if front_end else _first_affected(before, after)
    batches = clip_batches(original, clips)
    if first is None:
        return _report(kind, clips, batches, [], [])
    affected = [
        [sublayer for part, sublayer in enumerate(own) if (layer, part) >= first]
        for layer, own in enumerate(after)
    ]
    if front_end:
        require_windows(original, pruned, kind, batches, clips)
    _require_frames([one for own in affected for one in own], kind, batches)
    found: list[SublayerRepair] = []
    refined: list[LayerRefinement] = []
    front_parts = front_end_parts(pruned) if front_end else ()
    done = count(1)

    def part_done() -> None:
        progress(next(done), len(front_parts) + len(after))

    with torch.no_grad(), ExitStack() as stack:
        for model in (original, pruned):
            stack.enter_context(frozen(model))
            stack.enter_context(unchunked(model))
        fitted: list[Part] = [*front_parts, *(one for own in affected for one in own)]
        states = HiddenStates(scratch, max(0, room_bytes - _moments_bytes(fitted)))
        own_batches = ranks.share(batches)
        if front_parts:
            found += repair_front_end(
                original, pruned, clips, batches, kind, states, ranks, part_done
            )
            for batch in own_batches:
                states.put(f"pruned/{batch.number}", entering_states(pruned, batch, clips))
        encoder = LayerwiseEncoder(original, states)
        for batch in own_batches:
            states.put(f"original/{batch.number}", encoder.start(batch, clips))
        for layer, own in enumerate(after):
            module = encoder_layers(pruned)[layer]
            work = LayerWork(layer, encoder, module, own_batches, states, ranks)
            if not affected[layer]:
                work.pass_original(())
            else:
                if layer == first[0] and not front_parts:
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
            part_done()
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
    return [
        fit_writer(own[part], gone[part], *work.moments(part, own[part]), kind, everything)
        for part in parts
    ]


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
        part = first_affected(whole, smaller)
        if part is not None:
            return layer, part
    return None


def _moments_bytes(parts: Sequence[Part]) -> int:
    """What sums take up in float64: of clips fitted on and held out, and while they are solved."""
    shapes = [part.writer.weight.flatten(1).shape for part in parts]
    columns = max(shape[1] for shape in shapes)
    return 5 * 8 * columns * (columns + max(shape[0] for shape in shapes))


def _require_frames(
    affected: Sequence[Sublayer], kind: RepairKind, batches: Sequence[ClipBatch]
) -> None:
    frames = sum(int(batch.counts[~held_out(batch)].sum()) for batch in batches)
    clips = sum(int((~held_out(batch)).sum()) for batch in batches)
    for sublayer in affected:
        require_frames(sublayer, kind, frames, clips)


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
