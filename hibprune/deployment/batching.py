"""Which inputs go through a model together: of one shape, or of any length where it takes masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hibprune.models.masking import padded

Inputs = dict[str, Tensor]


def batches(
    inputs: Mapping[int, Inputs], size: int, masked: bool
) -> Iterator[tuple[list[int], Inputs]]:
    """Batches of up to `size` inputs of one, each with the places of what is in it.

    `masked`: clips of all lengths share them, those of about one length the same.
    """
    by_size = sorted(inputs, key=lambda place: _size(inputs[place]))
    for alike in [by_size] if masked else _by_shape(inputs):
        for start in range(0, len(alike), size):
            places = alike[start : start + size]
            yield places, together([inputs[place] for place in places], masked)


def together(some: Sequence[Inputs], masked: bool) -> Inputs:
    """One batch; filled up and with a mask where the model takes one, else of one shape."""
    if masked:
        return padded(some)
    return {name: torch.cat([one[name] for one in some]) for name in some[0]}


def _by_shape(inputs: Mapping[int, Inputs]) -> list[list[int]]:
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, one in inputs.items():
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in one.items())
        alike.setdefault(shape, []).append(place)
    return list(alike.values())


def _size(inputs: Inputs) -> int:
    return sum(tensor.numel() for tensor in inputs.values())
