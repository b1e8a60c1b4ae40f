"""Clips to train on: in which order they come, and how they are put together for a pass.

Clips are never padded, which would change what many checkpoints say: those of equal shape share a
pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.models.attention import frame_count, input_length, logit_count
from hibprune.models.families import family_of
from hibprune.models.layerwise import counting_frames
from hibprune.tasks import Batch, Encoded

POOL = 20
"""Batches whose clips are sorted by length before they are cut: alike within, at random between."""
CUT_SHARE = 0.05
"""How much of a clip's end may be cut for it to share a pass with others."""


@dataclass(frozen=True)
class TrainingClip:
    """A clip as the model is used on it.

    `inputs` have a batch dimension of 1. `frames` is None where all of the encoder's frames are the
    clip's; `target` None where nothing is known to be true of it.
    """

    id: str
    inputs: Mapping[str, Tensor]
    frames: int | None = None
    target: Encoded | None = None


@dataclass(frozen=True)
class TrainingBatch:
    """Clips of one shape for one pass, and which frames of the encoder count (clips, frames)."""

    batch: Batch
    heard: Tensor

    @property
    def length(self) -> tuple[int, ...]:
        """Shape of the inputs of a clip."""
        return tuple(size for value in self.batch.inputs.values() for size in value.shape[1:])

    def counts(self, encoder: int, layers: int) -> list[Tensor]:
        """Which places count in the hidden states of each layer, the encoder's first."""
        if layers == encoder:
            return [self.heard] * encoder
        lengths = [len(target) for target in self.batch.targets]
        places = torch.arange(max(lengths), device=self.heard.device)
        said = places < torch.tensor(lengths, device=self.heard.device)[:, None]
        return [self.heard] * encoder + [said] * (layers - encoder)


def batches_of_epoch(
    lengths: Sequence[float], room: float, seed: int, epoch: int
) -> list[list[int]]:
    """All clips once, in batches that are together no longer than `room`, by their places.

    The order is another in every epoch, and the same for a seed.
    """
    order = np.random.default_rng([seed, epoch])
    drawn = [int(place) for place in order.permutation(len(lengths))]
    pool = max(1, round(POOL * room / max(float(np.mean(lengths)), 1e-9)))
    found: list[list[int]] = []
    for begin in range(0, len(drawn), pool):
        alike = sorted(drawn[begin : begin + pool], key=lambda place: lengths[place])
        found += packed(alike, lengths, room)
    return [found[place] for place in order.permutation(len(found))]


def packed(places: Sequence[int], lengths: Sequence[float], room: float) -> list[list[int]]:
    """Clips in the order given, in batches no longer than `room`, of at least one."""
    found: list[list[int]] = []
    left = -1.0
    for place in places:
        left -= lengths[place]
        # A sum of tenths of seconds is a little off.
        if left < -1e-6:
            found.append([])
            left = room - lengths[place]
        found[-1].append(place)
    return found


def batches_from(
    lengths: Sequence[float], room: float, seed: int, done: int
) -> Iterator[list[int]]:
    """The batches of one epoch after the other without end, after the first `done`."""
    for epoch in count():
        found = batches_of_epoch(lengths, room, seed, epoch)
        yield from found[done:]
        done = max(0, done - len(found))


def shares_kept(lengths: Sequence[float]) -> list[float]:
    """How much of each clip of a batch is kept so that those of nearly one length share a pass.

    Told by all clips of a batch, so that it is the same however many processes share them.
    """
    found = [1.0] * len(lengths)
    shortest = 0.0
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if lengths[place] * (1 - CUT_SHARE) > shortest:
            shortest = lengths[place]
        found[place] = shortest / lengths[place] if lengths[place] else 1.0
    return found


def cut(model: PreTrainedModel, clip: TrainingClip, share: float) -> TrainingClip:
    """A clip without a little of its end, where the model takes waveforms."""
    family, name = family_of(model.config.model_type), model.main_input_name
    if share >= 1 or family.front_end is None or name != "input_values":
        return clip
    samples = round(share * clip.inputs[name].shape[-1])
    inputs = {key: value[..., :samples] for key, value in clip.inputs.items()}
    return replace(clip, inputs=inputs)


def passes(model: PreTrainedModel, clips: Sequence[TrainingClip]) -> list[TrainingBatch]:
    """Put clips of equal shape together."""
    alike: dict[object, list[TrainingClip]] = {}
    for clip in clips:
        shapes = tuple((name, tuple(value.shape)) for name, value in clip.inputs.items())
        alike.setdefault(shapes, []).append(clip)
    return [_batch(model, members) for members in alike.values()]


def _batch(model: PreTrainedModel, clips: Sequence[TrainingClip]) -> TrainingBatch:
    device = next(model.parameters()).device
    length = input_length(model, clips[0].inputs)
    frames = frame_count(model, length)
    heard = torch.stack([counting_frames(frames, clip.frames) for clip in clips])
    return TrainingBatch(
        Batch(
            ids=tuple(clip.id for clip in clips),
            inputs={
                name: torch.cat([clip.inputs[name] for clip in clips]).to(device)
                for name in clips[0].inputs
            },
            targets=tuple(clip.target for clip in clips if clip.target is not None),
            frames=(frames,) * len(clips),
            logits=(logit_count(model, length),) * len(clips),
        ),
        heard.to(device),
    )
