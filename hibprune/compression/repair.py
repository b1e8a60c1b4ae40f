"""Repair in closed form: the weights that stay are fitted to what the model did before.

Sublayer by sublayer from the input up, each writer of the pruned model S is fitted by least squares
(least_squares.py) to what it should write so that the residual stream comes out as the original's:

    u = (r_T + scale · (W z_T + b) − r_S) / scale

with r the stream that the output is added to, so that what removal has shifted further down is put
right as well. Sublayers behind the first removal are fitted also where nothing of theirs went. Only
forward passes are needed, a layer at a time on kept hidden states, and no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.hidden_states import HiddenStates
from hibprune.compression.least_squares import Moments, fitted, scaled
from hibprune.compression.settings import RepairKind
from hibprune.errors import UserError
from hibprune.models.attention import frozen, stack_layers
from hibprune.models.families import family_of
from hibprune.models.sublayers import (
    LayerCall,
    Sublayer,
    layer_calls,
    sublayers,
    writing_recorded,
)
from hibprune.records.repair import Repair, SublayerRepair

HELD_OUT_EVERY = 5
"""Of the clips, one in so many tells which fit is good and is not fitted on."""
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges that are tried, as shares of the mean variance of a column."""
PADDING_EVERY = 4
"""Of the frames behind a clip's end, in encoders that fill a window, one in so many counts."""
CLIPS_AT_ONCE = 16
FRAMES_AT_ONCE = 3000


@dataclass(frozen=True)
class RepairClip:
    """A calibration clip: the model's inputs for it, and its own frames where others are padding.

    `frames` is None where all frames of the encoder are the clip's.
    """

    inputs: Mapping[str, Tensor]
    frames: int | None = None


Total = Callable[[Moments], Moments]
"""Adds up what several processes have found, each on its own clips."""


@dataclass(frozen=True)
class CalibrationClips:
    """Clips of one shape, for one pass.

    `held` tells for each whether it is held out of fits; `counts` (clips, frames) which frames
    count.
    """

    shape: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    held: Tensor
    counts: Tensor


def repair(
    original: PreTrainedModel,
    pruned: PreTrainedModel,
    clips: Sequence[RepairClip],
    kind: RepairKind,
    scratch: Path,
    room_bytes: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    total: Total = lambda moments: moments,
) -> Repair:
    """Fit the weights of a pruned model, in place, to what the original does on some clips.

    Hidden states take up to `room_bytes` of memory, and files in `scratch` beyond that.

    Raises:
        UserError: there are fewer frames than a fit has unknowns; says how many clips it takes.
    """
    before, after = sublayers(original), sublayers(pruned)
    affected = _first_affected(before, after)
    batches = calibration_batches(original, clips)
    found: list[SublayerRepair] = []
    if affected is None:
        return _report(kind, clips, batches, found)
    with torch.no_grad(), frozen(original), frozen(pruned):
        states = HiddenStates(scratch, room_bytes)
        calls: dict[tuple[int, ...], tuple[LayerCall, ...]] = {}
        for number, batch in enumerate(batches):
            start, own = layer_calls(original, batch.inputs)
            calls.setdefault(batch.shape, own)
            states.put(f"original/{number}", start)
            states.put(f"pruned/{number}", start)
        layers = list(zip(_layers(original), _layers(pruned), strict=True))
        for place, (whole, smaller) in enumerate(layers):
            work = _LayerWork(place, whole, smaller, batches, calls, states)
            if place < affected:
                work.pass_unchanged()
            else:
                work.pass_original(before[place])
                for part, sublayer in enumerate(after[place]):
                    removed = len(before[place][part].units) - len(sublayer.units)
                    found.append(_fit(work, part, sublayer, removed, kind, total))
                work.pass_repaired()
            progress(place + 1, len(layers))
    return _report(kind, clips, batches, found)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    return stack_layers(model.base_model, family_of(model.config.model_type).encoder)


def _first_affected(
    before: Sequence[Sequence[Sublayer]], after: Sequence[Sequence[Sublayer]]
) -> int | None:
    for place, (whole, smaller) in enumerate(zip(before, after, strict=True)):
        if any(len(a.units) > len(b.units) for a, b in zip(whole, smaller, strict=True)):
            return place
    return None


def _report(
    kind: str,
    clips: Sequence[RepairClip],
    batches: Sequence[CalibrationClips],
    found: list[SublayerRepair],
) -> Repair:
    held = sum(int(batch.held.sum()) for batch in batches)
    frames = sum(int(batch.counts.sum()) for batch in batches)
    return Repair(
        kind=kind, clips=len(clips) - held, held_out=held, frames=frames, sublayers=tuple(found)
    )


@dataclass(frozen=True)
class _LayerWork:
    """Passes of all batches through one layer of both models."""

    place: int
    original: nn.Module
    pruned: nn.Module
    batches: Sequence[CalibrationClips]
    calls: Mapping[tuple[int, ...], tuple[LayerCall, ...]]
    states: HiddenStates

    def _call(self, batch: CalibrationClips) -> LayerCall:
        return self.calls[batch.shape][self.place]

    def pass_unchanged(self) -> None:
        """A layer in front of all removals: both models are one."""
        for number, batch in enumerate(self.batches):
            states = self._call(batch)(self.original, self.states.get(f"original/{number}"))
            self.states.put(f"original/{number}", states)
            self.states.put(f"pruned/{number}", states)

    def pass_original(self, parts: Sequence[Sublayer]) -> None:
        """Keep what the stream is behind each sublayer of the original."""
        for number, batch in enumerate(self.batches):
            with writing_recorded(parts) as written:
                states = self._call(batch)(self.original, self.states.get(f"original/{number}"))
            self.states.put(f"original/{number}", states)
            for part, sublayer in enumerate(parts):
                one = written[part]
                self.states.put(
                    f"target/{part}/{number}", one.residual + sublayer.scale * one.written
                )

    def moments(self, part: int, sublayer: Sublayer) -> tuple[Moments, Moments]:
        """Sums over the fitted and over the held-out clips of units' output and what to write."""
        rows, columns = sublayer.writer.weight.shape
        device = sublayer.writer.weight.device
        sums = [Moments.nothing(rows, columns, device) for _ in range(2)]
        for number, batch in enumerate(self.batches):
            with writing_recorded([sublayer], then_stop=True) as written:
                self._call(batch)(self.pruned, self.states.get(f"pruned/{number}"))
            one = written[0]
            wanted = (self.states.get(f"target/{part}/{number}") - one.residual) / sublayer.scale
            for held in (False, True):
                chosen = batch.counts & (batch.held == held)[:, None]
                if chosen.any():
                    sums[held] = sums[held] + Moments.of(one.units[chosen], wanted[chosen])
        return sums[0], sums[1]

    def pass_repaired(self) -> None:
        """What the fitted layer gives out is what the next one of the pruned model sees."""
        for number, batch in enumerate(self.batches):
            states = self._call(batch)(self.pruned, self.states.get(f"pruned/{number}"))
            self.states.put(f"pruned/{number}", states)


def _fit(
    work: _LayerWork, part: int, sublayer: Sublayer, removed: int, kind: RepairKind, total: Total
) -> SublayerRepair:
    writer = sublayer.writer
    fit, held = (total(moments) for moments in work.moments(part, sublayer))
    if kind == "least-squares" and fit.weight <= writer.in_features:
        raise _too_few_frames(fit, work.batches, sublayer)
    anchor, old_bias = writer.weight, writer.bias
    # Without clips held out, the fit itself has to tell.
    judge = held if held.weight else fit
    old_error = judge.error(anchor, old_bias)
    candidates: list[tuple[float, float | None]] = []
    for strength in STRENGTHS if kind == "least-squares" else (None,):
        weight, bias = _solution(fit, sublayer, kind, strength)
        candidates.append((judge.error(weight, bias), strength))
    error, strength = min(candidates, key=lambda candidate: candidate[0])
    refitted = error < old_error
    if refitted:
        # What held-out clips have chosen is fitted on all of them.
        weight, bias = _solution(fit + held, sublayer, kind, strength)
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
        strength=strength if refitted else None,
        before=old_error / spread,
        after=min(error, old_error) / spread,
        refitted=refitted,
    )


def _solution(
    moments: Moments, sublayer: Sublayer, kind: RepairKind, strength: float | None
) -> tuple[Tensor, Tensor | None]:
    writer = sublayer.writer
    with_bias = writer.bias is not None
    if kind == "scale":
        return scaled(moments, writer.weight, sublayer.blocks, with_bias)
    if kind == "mean":
        weight = writer.weight.double()
        if not with_bias:
            return weight, None
        return weight, (moments.target_sum - weight @ moments.input_sum) / moments.weight
    assert strength is not None
    return fitted(moments, writer.weight, strength, with_bias)


def _too_few_frames(
    fit: Moments, batches: Sequence[CalibrationClips], sublayer: Sublayer
) -> UserError:
    clips = sum(int((~batch.held).sum()) for batch in batches)
    per_clip = fit.weight / max(1, clips)
    wanted = int((sublayer.writer.in_features + 1) / max(per_clip, 1e-9)) + 1
    wanted = wanted * HELD_OUT_EVERY // (HELD_OUT_EVERY - 1) + 1
    return UserError(
        f"removal.repair: {fit.weight:.0f} frames of {clips} calibration clips are too few to fit "
        f"{sublayer.writer.in_features} columns of layer {sublayer.layer}'s {sublayer.name}: give "
        f"at least {wanted} clips (calibration.repair_samples), or set removal.repair to mean"
    )


def calibration_batches(
    model: PreTrainedModel, clips: Sequence[RepairClip]
) -> list[CalibrationClips]:
    """Clips of equal shape together, held out by their place among all clips."""
    device = next(model.parameters()).device
    waiting: dict[tuple[int, ...], list[tuple[int, RepairClip]]] = {}
    for place, clip in enumerate(clips):
        waiting.setdefault(tuple(clip.inputs[model.main_input_name].shape), []).append(
            (place, clip)
        )
    batches = []
    for shape, members in waiting.items():
        frames = _frames(model, members[0][1])
        size = max(1, min(CLIPS_AT_ONCE, FRAMES_AT_ONCE // max(1, frames)))
        for start in range(0, len(members), size):
            chosen = members[start : start + size]
            inputs = {
                name: torch.cat([clip.inputs[name] for _, clip in chosen]).to(device)
                for name in chosen[0][1].inputs
            }
            held = [place % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 for place, _ in chosen]
            counts = torch.stack([_counting(frames, clip.frames) for _, clip in chosen])
            batches.append(
                CalibrationClips(
                    (len(chosen), *shape),
                    inputs,
                    torch.tensor(held, device=device),
                    counts.to(device),
                )
            )
    return batches


def _frames(model: PreTrainedModel, clip: RepairClip) -> int:
    start, _ = layer_calls(model, clip.inputs)
    return start.shape[1]


def _counting(frames: int, own: int | None) -> Tensor:
    """True on frames that count: a clip's own, and some of the padding behind it."""
    place = torch.arange(frames)
    if own is None:
        return torch.ones(frames, dtype=torch.bool)
    return (place < own) | ((place - own) % PADDING_EVERY == 0)
