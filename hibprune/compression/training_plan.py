"""What a recovery is to do: its models, clips and loss, and how its steps go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from hibprune.compression.distillation import Distillation
from hibprune.compression.recover_settings import TrainingSettings
from hibprune.compression.training_clips import TrainingClip, batches_of_epoch

CHECKS = 20
"""How often, in equal parts of the steps, held-out clips are looked at, unless a recipe says."""


class Clips(Protocol):
    """What is trained on, by place: lengths are known beforehand, the rest is read when due."""

    @property
    def lengths(self) -> Sequence[float]:
        """Of every clip, in the unit of a batch's room."""
        ...

    def read(self, place: int, draw: int | None) -> TrainingClip:
        """A clip; `draw` numbers the times it is heard, and None is the clip as it is."""
        ...


@dataclass(frozen=True)
class Recovering:
    """A pruned model and the original, what is learned by, and on what.

    `room` is how long the clips of a batch are together; `held` and `learned` are places among the
    clips. `weights` of the pruned model move.
    """

    original: PreTrainedModel
    pruned: PreTrainedModel
    weights: Mapping[str, Tensor]
    loss: Distillation
    clips: Clips
    learned: Sequence[int]
    held: Sequence[int]
    settings: TrainingSettings
    room: float
    seed: int
    may_cut: bool
    seen_elsewhere: bool = False
    kept_bytes: int = 2**30
    """Memory for what the original says of clips that are heard the same each time."""

    @property
    def lengths(self) -> list[float]:
        """Of the clips learned from."""
        return [self.clips.lengths[place] for place in self.learned]

    @property
    def steps(self) -> int:
        """How many steps are planned."""
        if self.settings.steps is not None:
            return self.settings.steps
        assert self.settings.epochs is not None
        return self.settings.epochs * len(batches_of_epoch(self.lengths, self.room, self.seed, 0))

    @property
    def check_steps(self) -> int:
        """Held-out clips are looked at whenever so many steps were taken."""
        return self.settings.checkpoint_steps or max(1, math.ceil(self.steps / CHECKS))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = math.ceil(self.settings.warmup * self.steps)
        if step < warm:
            return self.settings.learning_rate * (step + 1) / warm
        return self.settings.learning_rate * (self.steps - step) / max(1, self.steps - warm)
