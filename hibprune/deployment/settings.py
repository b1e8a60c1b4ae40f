"""What a recipe may say of the export."""

from __future__ import annotations

from pydantic import Field, FiniteFloat, PositiveInt

from hibprune.records.medium import LengthSettings


class ExportSettings(LengthSettings):
    """How to export, and how closely the ONNX files must agree with PyTorch.

    Every output is compared at every combination of `seconds` (of text, `tokens`) and `batches`.
    `tolerance` is the largest difference that passes, as a share of the output's largest absolute
    value there. The default is ten to twenty times the largest seen of a sound export (7e-5: the
    hidden states of a Whisper, whose sums ONNX Runtime takes in another order).
    """

    opset: int = Field(default=18, ge=14, le=20)
    tolerance: FiniteFloat = Field(default=1e-3, gt=0)
    seconds: tuple[FiniteFloat, ...] = Field(default=(1.0, 2.5, 5.0), min_length=1)
    tokens: tuple[int, ...] = Field(default=(16, 40, 128), min_length=1)
    batches: tuple[PositiveInt, ...] = Field(default=(1, 3), min_length=1)
