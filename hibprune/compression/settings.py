"""What a recipe may say about removal: what is done with the weights that stay."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hibprune.records.base import Settings

RepairKind = Literal["none", "mean", "scale", "least-squares"]


class RemovalSettings(Settings):
    """What happens to the weights that stay, once units are gone.

    `repair` fits them to what the model did before, on the calibration clips and without labels:
    `least-squares` all that write where units went, and behind; `scale` one factor for each unit
    that stays; `mean` the biases alone; `none` leaves them. `memory_gib` bounds the hidden states
    that are held in memory for it; what is more goes to files.
    """

    former_names: ClassVar[dict[str, str]] = {"leave": "repair"}

    repair: RepairKind = "least-squares"
    memory_gib: float = Field(default=2.0, gt=0)
