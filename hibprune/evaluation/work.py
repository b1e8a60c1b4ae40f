"""What a model is given to do where sizes and times are counted."""

from __future__ import annotations

import math

from hibprune.models.preprocessing import Preprocessor
from hibprune.records.medium import Length


def window_of(preprocessor: Preprocessor) -> float | None:
    """The seconds that every clip is filled up to, found by trying.

    None where inputs are as long as the clip.
    """
    longest = preprocessor.longest
    if preprocessor.medium.unit != "seconds" or not math.isfinite(longest):
        return None
    shapes = []
    for share in (0.25, 0.5):
        example = preprocessor.example(Length(value=share * longest, unit="seconds"), 1)
        shapes.append({name: value.shape for name, value in example.items()})
    return longest if shapes[0] == shapes[1] else None
