"""What a recipe may say of the export."""

from __future__ import annotations

import re

from pydantic import Field, FiniteFloat, PositiveInt, field_validator

from hibprune.records.medium import LengthSettings
from hibprune.records.precision import Precision

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")


class ExportSettings(LengthSettings):
    """In which precisions to export, and how closely ONNX files must agree with PyTorch.

    `variants` are those of the pruned model; fp32 is among them, since the others are made from it:
    int8 for processors, fp16 for GPUs and browsers.

    Every output is compared at every combination of `seconds` (of text, `tokens`) and `batches`.
    `tolerance` is the largest difference that passes, as a share of the output's largest absolute
    value there. The default is ten to twenty times the largest seen of a sound export (7e-5: the
    hidden states of a Whisper, whose sums ONNX Runtime takes in another order).

    `waveform` adds a graph in fp32 that takes the samples themselves, with the feature extractor's
    work inside: for wav2vec2-like models and Whisper.

    `attention_mask` lets the graph of a wav2vec2-like model take a mask beside the samples, so that
    clips of different lengths filled up to one give what each gives alone. Refused where it would
    not: of models with a group norm in the front end, and wherever else a trial finds a difference.

    `sherpa` adds the files that sherpa-onnx loads of a Whisper, in fp32, in a folder of their own.

    `license` is the model's licence by the Hub's name for it, for the card, where the card of the
    original does not state it or is wrong.
    """

    variants: tuple[Precision, ...] = Field(default=("fp32", "int8"), min_length=1)
    opset: int = Field(default=18, ge=14, le=20)
    tolerance: FiniteFloat = Field(default=1e-3, gt=0)
    seconds: tuple[FiniteFloat, ...] = Field(default=(1.0, 2.5, 5.0), min_length=1)
    tokens: tuple[int, ...] = Field(default=(16, 40, 128), min_length=1)
    batches: tuple[PositiveInt, ...] = Field(default=(1, 3), min_length=1)
    license: str | None = None
    waveform: bool = False
    attention_mask: bool = False
    sherpa: bool = False

    @property
    def of_graphs(self) -> dict[str, object]:
        """The settings that decide what is in the graphs of one variant."""
        return self.model_dump(mode="json", exclude={"variants", "license", "waveform", "sherpa"})

    @field_validator("license", mode="before")
    @classmethod
    def _is_a_hub_name(cls, name: object) -> object:
        if name is not None and not (isinstance(name, str) and LICENCE.fullmatch(name)):
            raise ValueError(
                "should be the Hub's name of a licence, in small letters: apache-2.0, mit, "
                "cc-by-nc-4.0 …"
            )
        return name

    @field_validator("variants")
    @classmethod
    def _fp32_is_among_them(cls, variants: tuple[Precision, ...]) -> tuple[Precision, ...]:
        if "fp32" not in variants:
            raise ValueError("fp32 is what the others are made from: leave it in")
        if len(set(variants)) < len(variants):
            raise ValueError("name each precision once")
        return variants
