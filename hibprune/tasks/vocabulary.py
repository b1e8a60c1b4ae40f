"""Targets of clips and texts, in words and in a model's own numbers, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Target = str | dict[str, str]
"""What is true of a clip or text: a label, a text, or a label per slot."""

Encoded = tuple[int, ...]
"""A target in the model's own numbers: class, one class per slot, or tokens."""


Probabilities = dict[str, Any] | list[tuple[str, float]]
"""Of labels by name, of labels by slot, or of the tokens of a transcript in their order."""


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


def label_probabilities(logits: np.ndarray, labels: Sequence[str]) -> dict[str, float]:
    """What a softmax makes of logits (classes,), the most probable label first."""
    # Relative to the largest, so that no exponential overflows.
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    shares = dict(zip(labels, (powers / powers.sum()).tolist(), strict=True))
    return dict(sorted(shares.items(), key=lambda entry: -entry[1]))
