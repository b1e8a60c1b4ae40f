"""Inputs made once: what a model is given of each clip, kept for whoever asks again.

Reading sound and computing features takes as long as a small model does, and every variant is
measured on the same clips.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from hibprune.data import Utterance

Inputs = dict[str, Tensor]


class InputCache:
    """Inputs of clips by their identity: in memory up to `room_bytes`, beyond that in files.

    The files lie in `scratch`, which is made when the first is needed and is the caller's to
    remove. Call it with a clip to have its inputs; they are not to be changed.
    """

    def __init__(
        self, make: Callable[[Utterance], Inputs], scratch: Path, room_bytes: int = 2**30
    ) -> None:
        self._make = make
        self._scratch = scratch
        self._room = room_bytes
        self._kept: dict[str, Inputs] = {}
        self._filed: dict[str, Path] = {}

    def __call__(self, clip: Utterance) -> Inputs:
        if clip.id in self._kept:
            return self._kept[clip.id]
        if clip.id in self._filed:
            return load_file(self._filed[clip.id])
        inputs = self._make(clip)
        size = sum(value.numel() * value.element_size() for value in inputs.values())
        if size <= self._room:
            self._room -= size
            self._kept[clip.id] = inputs
        else:
            self._scratch.mkdir(parents=True, exist_ok=True)
            path = self._scratch / f"{len(self._filed)}.safetensors"
            save_file({name: value.contiguous() for name, value in inputs.items()}, path)
            self._filed[clip.id] = path
        return inputs
