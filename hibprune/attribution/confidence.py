"""Confidence: how much of its attention a head gives to one place, on average."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from hibprune.attribution.attention import WeightsMethod
from hibprune.attribution.batches import mean_over_frames


class Confidence(WeightsMethod):
    """Mean over a clip's frames of the largest weight in the frame's row.

    The paper leaves out the end-of-sentence token, of which an encoder of speech has none; where
    the input is text, all of its tokens count.
    """

    method: Literal["confidence"]

    title: ClassVar[str] = "Confidence: mean over frames of the largest attention weight"
    source: ClassVar[str] = "Voita et al. 2019 (Story of Heads)"

    def over_frames(self, largest: Tensor, valid: Tensor) -> Tensor:
        return mean_over_frames(largest, valid)
