"""Hidden states kept between passes: in memory up to a bound, beyond it in files."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class HiddenStates:
    """Tensors by name. Files lie in `scratch`, which is the caller's to remove."""

    def __init__(self, scratch: Path, room_bytes: int) -> None:
        self._scratch = scratch
        self._room = room_bytes
        self._kept: dict[str, Tensor] = {}
        self._filed: dict[str, tuple[Path, torch.device]] = {}

    def put(self, name: str, states: Tensor) -> None:
        """Keep a tensor in the place of what the name stood for."""
        self.drop(name)
        if states.nbytes <= self._room:
            self._room -= states.nbytes
            self._kept[name] = states
            return
        self._scratch.mkdir(parents=True, exist_ok=True)
        path = self._scratch / f"{uuid4().hex}.safetensors"
        save_file({"states": states.contiguous().cpu()}, path)
        self._filed[name] = (path, states.device)

    def offer(self, name: str, states: Tensor) -> None:
        """Keep what can be computed again, where there is room for it in memory."""
        self.drop(name)
        if states.nbytes <= self._room:
            self.put(name, states)

    def __contains__(self, name: str) -> bool:
        return name in self._kept or name in self._filed

    def get(self, name: str) -> Tensor:
        """What a name stands for, on the device it came from. It is not to be changed."""
        if name in self._kept:
            return self._kept[name]
        path, device = self._filed[name]
        return load_file(path)["states"].to(device)

    def drop(self, name: str) -> None:
        """Forget what a name stands for, if it stands for anything."""
        if name in self._kept:
            self._room += self._kept.pop(name).nbytes
        if name in self._filed:
            path, _ = self._filed.pop(name)
            path.unlink()
