"""What recovery found out: how the losses went, which weights were kept, and what that took."""

from __future__ import annotations

from typing import Literal

from hibprune.records.base import Record

Trained = Literal["all", "repaired", "norms+biases"]
"""Which weights recovery moves."""
TrainingPrecision = Literal["fp32", "bf16", "fp16"]
"""What is computed in during recovery; weights are kept in float32."""
Ending = Literal["all steps", "no better", "not finite", "diverged"]
"""Why a training ended."""


class Losses(Record):
    """The loss after some steps: the mean of the steps since the last entry, and on clips held out.

    Before the first step there is none to train on; None too where no clips are held out.
    """

    step: int
    training: float | None = None
    held_out: float | None = None


class Recovery(Record):
    """A whole recovery.

    `clips` were learned from and `held_out` others looked at. `planned` steps were to be taken and
    `steps` were; the weights kept are those after `best_step`, 0 being what repair had left.
    `parameters` is how many numbers moved, of those that `trained` names; `seen_elsewhere` that the
    clips were others than those of calibration.
    """

    clips: int
    held_out: int
    seen_elsewhere: bool
    planned: int
    steps: int
    best_step: int
    ended: Ending
    trained: Trained
    parameters: int
    precision: TrainingPrecision
    curve: tuple[Losses, ...]

    @property
    def start(self) -> Losses:
        """Before the first step."""
        return self.curve[0]

    @property
    def best(self) -> Losses:
        """Where the weights are from that were kept."""
        return next(one for one in self.curve if one.step == self.best_step)

    @property
    def broke_off(self) -> bool:
        """Whether it had to be stopped before its time."""
        return self.ended in ("not finite", "diverged")


class RecoveredModel(Record):
    """The recovered model as saved: its files, how it was trained, and the seconds that took."""

    recovery: Recovery
    seconds: float
    files: tuple[str, ...]
