"""What a recipe may say about its data: to score and repair on, to measure on, to recover on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hibprune.compression.recover_settings import TrainingSettings
from hibprune.data import DataSource, DurationLimits
from hibprune.records.base import Settings


class InputLimits(Settings):
    """Which clips can be used, and what share of them may be unusable before the run stops.

    Texts have no seconds: the longest that can be used is the model's to say.
    """

    min_seconds: float = Field(default=0.1, gt=0)
    max_seconds: float = Field(default=40.0, gt=0)
    max_unreadable: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _some_clip_fits(self) -> InputLimits:
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds {self.min_seconds:g} is more than max_seconds {self.max_seconds:g}"
            )
        return self

    @property
    def durations(self) -> DurationLimits:
        return DurationLimits(min_seconds=self.min_seconds, max_seconds=self.max_seconds)


class Calibration(InputLimits):
    """What units are scored on, drawn by the recipe's seed and balanced over classes.

    Removal is repaired on `repair_samples`: those and, where it is more, others behind them; left
    open, on those alone. `labels: model` takes the model's own predictions for the truth, for data
    without labels. `crop_seconds` scores on the beginning of each clip, for tasks with labels: the
    memory of attribution grows with the square of the length.
    """

    source: DataSource
    samples: int = Field(default=200, ge=1)
    repair_samples: int | None = Field(default=None, ge=1)
    labels: Literal["dataset", "model"] = "dataset"
    crop_seconds: float | None = Field(default=None, gt=0)


class Validation(InputLimits):
    """What the metric is measured on: all of it, or `limit` drawn by the recipe's seed.

    A run stops where the original model is no better than chance, since all that follows would
    compare guesses; `allow_chance_baseline` lets it go on, and the report say so.
    """

    source: DataSource
    limit: int | None = Field(default=None, ge=1)
    allow_chance_baseline: bool = False


class RecoverSettings(InputLimits, TrainingSettings):
    """Training of the repaired model, as a whole, towards what the original says: distillation.

    For budgets beyond what repair can make up for. The original is heard on the same clips and is
    never changed. `data` are the clips to learn from, all of them or `limit` drawn by the recipe's
    seed; left open, those that were repaired on, which are few. `steps` or `epochs` say how long; a
    step takes a batch of clips that are `batch_seconds` long together (texts: `batch_tokens`), in
    `accumulation` parts one after the other where memory is short. The rate of learning rises to
    `learning_rate` over the first share `warmup` of the steps and then falls evenly to nothing.

    Labels are needed for `loss.task` alone. A decoder is fed the transcripts of `data` where there
    are any, and else what the original says itself; `labels` asks for either. `train` says which
    weights move: `all`, those that were `repaired`, or `norms+biases`. A share `held_out` of the
    clips is not learned from: after every `checkpoint_steps` (left open: a twentieth of all) they
    tell how good the weights are, of which the best are kept, also those of before the first step;
    after `patience` times without a better loss the training ends, and where they lose a twentieth
    more than before it, it goes on from the best weights at a third of the rate. With 0, the last
    weights are kept. `precision` is what is computed in: bf16 and fp16 are for GPUs. `seed` is the
    recipe's where it is left open.

    Between rounds of `schedule.rounds` the model is recovered as well, so that heads go gradually.
    """

    data: DataSource | None = None
    limit: int | None = Field(default=None, ge=1)
    labels: Literal["dataset", "model"] | None = None

    @model_validator(mode="after")
    def _a_limit_is_of_data(self) -> RecoverSettings:
        if self.limit is not None and self.data is None:
            raise ValueError("limit draws from data, of which there are none: leave it out")
        return self
