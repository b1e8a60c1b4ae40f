"""What a recipe may say about removal: what is done with the weights that stay."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hibprune.records.base import Settings

MAX_STEPS = 100_000

RepairKind = Literal["none", "mean", "scale", "least-squares"]


class RefineSettings(Settings):
    """Gradient steps behind the fit: a layer at a time, towards what the original gives out.

    All matrices of a layer of the encoder move, in up to `steps` steps of a batch of clips each;
    layers of a decoder stay as they were fitted. No labels are used. Calibration clips held out of
    it say after how many to stop, and whether it helps at all.
    """

    steps: int = Field(ge=1, le=MAX_STEPS)


class RemovalSettings(Settings):
    """What happens to the weights that stay, once units are gone.

    `repair` fits them to what the model did before, on the calibration clips and without labels; a
    decoder that lost units is fed the clips' transcripts, or with `calibration.labels: model` what
    the model says itself. `least-squares` fits all that write where units went,
    and behind; `scale` one factor for each unit that stays; `mean` the biases alone; `none` leaves
    them. `memory_gib` bounds the hidden states that are held in memory for it (what is more goes to
    files), and what recovery keeps of the original's answers. `refine` goes on from the fitted
    weights by gradient steps; left open, it is not done.
    """

    former_names: ClassVar[dict[str, str]] = {"leave": "repair"}

    repair: RepairKind = "least-squares"
    memory_gib: float = Field(default=2.0, gt=0)
    refine: RefineSettings | None = None

    @model_validator(mode="after")
    def _only_what_was_fitted_is_refined(self) -> RemovalSettings:
        if self.refine is not None and self.repair != "least-squares":
            raise ValueError(
                f"refine goes on from weights that least squares have fitted, and repair is "
                f"{self.repair}: set repair to least-squares or leave refine out"
            )
        return self

    @property
    def refine_steps(self) -> int:
        """Gradient steps a layer behind the fit; 0 where there are to be none."""
        return 0 if self.refine is None else self.refine.steps
