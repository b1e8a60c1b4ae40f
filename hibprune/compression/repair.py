"""Repair in closed form: the weights that stay are fitted to what the model did before.

Sublayer by sublayer from the input up, each writer of the pruned model S is fitted by least squares
(least_squares.py) to what it should write so that the residual stream comes out as the original's:

    u = (r_T + scale · (W z_T + b) − r_S) / scale

with r the stream that the output is added to, so that what removal has shifted further down is put
right as well. Sublayers behind the first removal are fitted also where nothing of theirs went. Only
forward passes are needed, a layer at a time on kept hidden states, and no labels. Where the
sublayer has no bias, none is made: what then stays of a shift is left to the sublayers above. Where
channels of a convolutional front end are gone, that is repaired first (front_end_repair.py).

A decoder that lost units is repaired after the encoder, on transcripts that both models are fed,
each hearing what its own encoder gives out: the clips' transcripts stand for labels there. One that
lost none is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hibprune.compression.front_end_repair import (
    front_end_affected,
    repair_front_end,
    require_windows,
)
from hibprune.compression.layer_work import held_out
from hibprune.compression.matrix_fit import Part
from hibprune.compression.settings import RepairKind
from hibprune.compression.stack_repair import DamagedStack, StackRepair
from hibprune.execution.processes import ALONE, Processes
from hibprune.models.attention import frozen
from hibprune.models.feed_forward import neuron_stack
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
from hibprune.models.layerwise_decoder import (
    LayerwiseDecoder,
    decoder_layers,
    transcript_batches,
)
from hibprune.models.sublayers import sublayers
from hibprune.records.repair import LayerRefinement, Repair, SublayerRepair
from hibprune.records.units import DECODER

BEHIND_SELF_ATTENTION = (0, 1)
"""The first sublayer of a decoder that hears the encoder."""


def repair(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    kind: RepairKind,
    scratch: Path,
    room_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    refine_steps: int = 0,
    processes: Processes = ALONE,
) -> Repair:
    """Fit the weights of a pruned model, in place, to what the original does on some clips.

    Hidden states and second moments take up to `room_bytes` of memory; states beyond that lie in
    files in `scratch`, which is the caller's to remove. Several processes that are given the same
    take a share of the work each, and come to the same weights. A model that lost nothing is left
    alone. Where a decoder lost units, clips need tokens; gradient steps are for the encoder.

    Raises:
        UserError: there are fewer frames than a fit has unknowns (says how many clips it takes), or
            a model gives out NaN or infinite values.
    """
    front_end = front_end_affected(original, pruned)
    encoder = DamagedStack.of(sublayers(original), sublayers(pruned))
    if front_end:
        encoder = encoder.fitted_from((0, 0))
    decoder = _damaged_decoder(original, pruned, encoder.first is not None)
    batches = clip_batches(original, clips)
    if front_end:
        require_windows(original, pruned, kind, batches, clips)
    encoder.require_frames(kind, batches)
    front_parts = front_end_parts(pruned) if front_end else ()
    found: list[SublayerRepair] = []
    refined: list[LayerRefinement] = []
    done, parts = count(1), len(front_parts) + encoder.layers + decoder.layers

    def part_done() -> None:
        progress(next(done), parts)

    fitted: list[Part] = [*front_parts, *encoder.all_fitted, *decoder.all_fitted]
    with torch.no_grad(), ExitStack() as stack:
        for model in (original, pruned):
            stack.enter_context(frozen(model))
            stack.enter_context(unchunked(model))
        states = HiddenStates(scratch, max(0, room_bytes - _moments_bytes(fitted)))
        own_batches = processes.share(batches)
        if front_parts:
            found += repair_front_end(
                original, pruned, clips, batches, kind, states, processes, part_done
            )
            for batch in own_batches:
                states.put(f"pruned/{batch.number}", entering_states(pruned, batch, clips))
        if encoder.layers:
            through = LayerwiseEncoder(original, states)
            for batch in own_batches:
                states.put(f"original/{batch.number}", through.start(batch, clips))
            layers, parted = encoder_layers(pruned), bool(front_parts)
            walk = StackRepair(encoder, through, layers, own_batches, states, processes, parted)
            more, refined = walk.walk(kind, refine_steps, part_done)
            found += more
        spoken = transcript_batches(original, clips) if decoder.layers else ()
        if decoder.layers:
            own_spoken = processes.share(spoken)
            speaking = LayerwiseDecoder(original, states)
            for batch in own_spoken:
                states.put(f"original/{batch.number}", speaking.start(batch, clips))
                speaking.hear_pruned(pruned, batch, clips)
            layers = decoder_layers(pruned)
            walk = StackRepair(decoder, speaking, layers, own_spoken, states, processes)
            found += walk.walk(kind, 0, part_done)[0]
    held = sum(int(held_out(batch).sum()) for batch in batches)
    return Repair(
        kind=kind,
        clips=len(clips) - held,
        held_out=held,
        frames=_counted(batches) if encoder.layers or not spoken else 0,
        tokens=_counted(spoken),
        sublayers=tuple(found),
        refinements=tuple(refined),
    )


def _damaged_decoder(
    original: PreTrainedModel, pruned: PreTrainedModel, encoder_damaged: bool
) -> DamagedStack:
    """The decoder that lost units, or no layers where it lost none or there is no decoder."""
    whole = DamagedStack((), (), None)
    if neuron_stack(original, DECODER) is None:
        return whole
    found = DamagedStack.of(sublayers(original, DECODER), sublayers(pruned, DECODER))
    if found.first is None:
        return whole
    return found.fitted_from(BEHIND_SELF_ATTENTION) if encoder_damaged else found


def _moments_bytes(parts: Sequence[Part]) -> int:
    """What sums take up in float64: of clips fitted on and held out, and while they are solved."""
    shapes = [part.writer.weight.flatten(1).shape for part in parts]
    columns = max((shape[1] for shape in shapes), default=0)
    return 5 * 8 * columns * (columns + max((shape[0] for shape in shapes), default=0))


def _counted(batches: Sequence[ClipBatch]) -> int:
    """The frames or tokens that count."""
    return sum(int(batch.counts.sum()) for batch in batches)
