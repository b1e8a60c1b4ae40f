"""What a recipe may say about recovery: training of the pruned model towards the original."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from hibprune.compression.settings import MAX_STEPS
from hibprune.records.base import Settings
from hibprune.records.recovery import Trained, TrainingPrecision

LEARNING_RATE = 1e-4
"""On the quickstart without 90 % of its heads, 85 % of its neurons and 65 % of its channels, the
loss on clips held out of 200 calibration clips is 0.339 after repair, and 1.030, 0.348, 0.342 and
0.339 after 60 to 100 steps at 2e-3, 3e-4, 1e-4 and 3e-5; that of training falls to 0.61, 0.33, 0.34
and 0.37. Repaired weights stand in a narrow valley: a rate that suits a training from noise leaves
it."""

MAX_EPOCHS, MAX_ACCUMULATION, MAX_WARPS = 10_000, 1024, 16


class LossWeights(Settings):
    """What each part of the loss weighs; a part that weighs nothing is not computed.

    `logits` is the Kullback–Leibler divergence of the pruned model's answer from the original's, a
    mean over frames or tokens (nats); `hidden` how far the hidden states behind every layer are
    from the original's: L1 as a share of what is there, and 1 − cosine, a mean over layers; `task`
    the task's own loss, which takes labels.
    """

    logits: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    hidden: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    task: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _something_is_learned(self) -> LossWeights:
        if not (self.logits or self.hidden or self.task):
            raise ValueError("all weights are 0, so that there is nothing to learn: raise one")
        return self


class Augmentation(Settings):
    """How clips of sound are varied, anew each time they are heard; both models hear the same.

    `speed` are factors of which one is drawn, 1 among them for clips as they are; a clip sounds
    higher by them, too. `time_masks` stretches of up to `time_share` of the clip are blotted out of
    the spectrogram, and `frequency_masks` bands of up to `frequency_share` of it (SpecAugment), of
    a waveform by way of its short-time Fourier transform. Both are torchaudio's.
    """

    speed: tuple[float, ...] = Field(default=(), max_length=MAX_WARPS)
    time_masks: int = Field(default=0, ge=0, le=MAX_WARPS)
    time_share: float = Field(default=0.05, gt=0, le=0.5)
    frequency_masks: int = Field(default=0, ge=0, le=MAX_WARPS)
    frequency_share: float = Field(default=0.15, gt=0, le=0.5)

    @model_validator(mode="after")
    def _speeds_are_near_one(self) -> Augmentation:
        for factor in self.speed:
            if not 0.5 <= factor <= 2:
                raise ValueError(f"speed: should be between 0.5 and 2, not {factor:g}")
        return self

    @property
    def changes(self) -> bool:
        """Whether anything is varied at all."""
        return bool(self.speed or self.time_masks or self.frequency_masks)


class TrainingSettings(Settings):
    """How recovery trains, whatever on."""

    former_names: ClassVar[dict[str, str]] = {"lr": "learning_rate"}

    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS)
    epochs: int | None = Field(default=None, ge=1, le=MAX_EPOCHS)
    learning_rate: float = Field(default=LEARNING_RATE, ge=0, le=1)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    batch_seconds: float = Field(default=16.0, gt=0, allow_inf_nan=False)
    batch_tokens: int = Field(default=512, ge=1)
    accumulation: int = Field(default=1, ge=1, le=MAX_ACCUMULATION)
    loss: LossWeights = LossWeights()
    temperature: float = Field(default=1.0, gt=0, le=100)
    train: Trained = "all"
    augment: Augmentation = Augmentation()
    held_out: float = Field(default=0.1, ge=0, le=0.5)
    patience: int = Field(default=5, ge=1)
    checkpoint_steps: int | None = Field(default=None, ge=1)
    precision: TrainingPrecision = "fp32"
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainingSettings:
        given = [name for name in ("steps", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            found = "there are both" if given else "there is neither"
            raise ValueError(f"give one of steps and epochs: {found}")
        return self
