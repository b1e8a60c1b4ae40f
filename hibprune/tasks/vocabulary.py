"""Targets of clips and texts, in words and in a model's own numbers, and what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Target = str | dict[str, str]
"""What is true of a clip or text: a label, a text, or a label per slot."""

Encoded = tuple[int, ...]
"""A target in the model's own numbers: class, one class per slot, or tokens."""


@dataclass(frozen=True)
class Batch:
    """Clips or texts for one forward pass.

    `inputs` are the model's keyword arguments; `frames` holds each one's number of frames in the
    encoder's attention, `logits` that of its logits, where a model has some for every frame.
    """

    ids: tuple[str, ...]
    inputs: dict[str, Tensor]
    targets: tuple[Encoded, ...]
    frames: tuple[int, ...]
    logits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """What a model's output numbers mean: class names, or a tokenizer for text.

    For a model with a decoder, `generation` is how transformers generates with it, and `positions`
    the number of tokens the decoder has a table of positions for, None where it has no table.
    `configuration` is what config.json says, `outputs` the number of logits that the weights make;
    None where there is no checkpoint to ask.
    """

    labels: tuple[str, ...]
    tokenizer: Any = None
    generation: Any = None
    positions: int | None = None
    configuration: Any = None
    outputs: int | None = None
