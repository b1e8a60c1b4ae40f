"""Passes of many clips through a front end, part by part, and second moments of unfolded windows.

The first convolutions have thousands of frames a second. Of those, every n-th window is looked at,
with n the same for all clips and such that about `WINDOWS_PER_COLUMN` windows are there for each
column of the matrix, and no fewer than `LEAST_WINDOWS`. Each clip begins at another place, so that
nothing that comes with a beat is missed. The choice hangs on the clips' lengths and places alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import input_length
from hibprune.models.front_end import FrontEndPart
from hibprune.models.layerwise import CalibrationClip, ClipBatch
from hibprune.models.moments import Moments

WINDOWS_PER_COLUMN = 32
LEAST_WINDOWS = 50_000
WINDOWS_AT_ONCE = 8192
"""Copied and squared together."""


@dataclass(frozen=True)
class Passed:
    """What a part of the front end did to a batch.

    `windows` (clips, frames, channels, size) are what its matrix was multiplied with, `written`
    (clips, frames, rows) what came of it, `after` what the next part is given.
    """

    windows: Tensor
    written: Tensor
    after: Tensor


def waveforms(model: PreTrainedModel, batch: ClipBatch, clips: Sequence[CalibrationClip]) -> Tensor:
    """What the first convolution is given: a waveform (clips, 1, samples), or a spectrogram
    (clips, bands, frames)."""
    device = next(model.parameters()).device
    inputs = batch.inputs(clips)[model.main_input_name].to(device)
    return inputs[:, None] if inputs.dim() == 2 else inputs


@torch.no_grad()
def passed(part: FrontEndPart, states: Tensor) -> Passed:
    """Pass a batch (clips, channels, samples) through one part."""
    caught: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        caught.append((inputs[0], output))

    handle = part.writer.register_forward_hook(keep)
    try:
        given = states.transpose(1, 2) if part.is_projection else states
        after: Any = part.module(given)
    finally:
        handle.remove()
    inputs, written = caught[0]
    return Passed(
        windows=part.windows(inputs),
        written=written if part.is_projection else written.transpose(1, 2),
        after=after[0] if isinstance(after, tuple) else after,
    )


def frames_by_part(
    model: PreTrainedModel,
    parts: Sequence[FrontEndPart],
    batches: Sequence[ClipBatch],
    clips: Sequence[CalibrationClip],
    chosen: Callable[[ClipBatch], int] = lambda batch: len(batch.places),
) -> list[int]:
    """How many frames each part makes of all clips together, or of so many of each batch."""
    found = [0] * len(parts)
    for batch in batches:
        frames, number = input_length(model, batch.inputs(clips)), chosen(batch)
        for place, part in enumerate(parts):
            frames = part.frames(frames)
            found[place] += number * frames
    return found


def window_step(frames: int, part: FrontEndPart) -> int:
    """Of `frames` windows of all clips together, every so many-th is looked at."""
    columns = len(part.units) * part.size
    return max(1, frames // max(LEAST_WINDOWS, WINDOWS_PER_COLUMN * columns))


def window_moments(
    windows: Tensor, targets: Tensor, batch: ClipBatch, step: int, chosen: Tensor
) -> Moments:
    """Sums over every `step`-th window of the clips that `chosen` (clips,) is true for.

    `windows` (clips, frames, channels, size), `targets` (clips, frames, rows).
    """
    columns = windows.shape[2] * windows.shape[3]
    sums = Moments.nothing(targets.shape[-1], columns, windows.device)
    places = [
        torch.stack([torch.full_like(frames, row), frames])
        for row, place in enumerate(batch.places)
        if chosen[row]
        for frames in [torch.arange(place % step, windows.shape[1], step)]
    ]
    if not places:
        return sums
    for rows, frames in (
        part.to(windows.device) for part in torch.cat(places, 1).split(WINDOWS_AT_ONCE, 1)
    ):
        sums = sums + Moments.of(windows[rows, frames].flatten(1), targets[rows, frames])
    return sums
