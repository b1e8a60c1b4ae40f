"""What a recipe may say about int8."""

from __future__ import annotations

from pydantic import Field

from hibprune.records.base import Settings


class QuantizeSettings(Settings):
    """How weights become int8, and how much worse the metric may get on calibration data.

    By default weights take 7 of the 8 bits, since processors without VNNI saturate otherwise;
    `full_range` takes all, for targets known to have it. Where int8 costs more than `max_drop`
    (0.01 is a point), what costs most is left in float32.
    """

    full_range: bool = False
    max_drop: float = Field(default=0.01, ge=0)
