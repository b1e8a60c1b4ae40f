"""Random numbers for samples in batches, the same whatever batch a sample is in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hibprune.attribution.batches import CalibrationBatch


@dataclass(frozen=True)
class SeededNoise:
    """Random numbers that depend on the seed and the sample, not on the batch it is in.

    So a resumed run, and one with other batches, draws what an undisturbed run would have drawn.
    """

    generators: tuple[torch.Generator, ...]
    frames: tuple[int, ...]
    device: torch.device

    @classmethod
    def for_batch(cls, calibration: CalibrationBatch, seed: int | str) -> SeededNoise:
        """One generator for each sample of the batch."""
        device = calibration.valid.device
        generators = []
        for sample in calibration.batch.ids:
            digest = hashlib.sha256(f"{seed}/{sample}".encode()).digest()
            generator = torch.Generator(device=device)
            generators.append(generator.manual_seed(int.from_bytes(digest[:7], "little")))
        return cls(tuple(generators), calibration.batch.frames, device)

    def attention(self, heads: int) -> Tensor:
        """Standard normal (batch, heads, frames, frames), zero where padded."""
        longest = max(self.frames)
        return self._normal((heads, longest, longest), lambda n: (heads, n, n))

    def values(self, heads: int, head_size: int) -> Tensor:
        """Standard normal (batch, heads, frames, head size), zero where padded."""
        return self._normal((heads, max(self.frames), head_size), lambda n: (heads, n, head_size))

    def _normal(
        self, whole: tuple[int, int, int], own: Callable[[int], tuple[int, int, int]]
    ) -> Tensor:
        """Draws of every sample's own shape, in a tensor with room for the longest's."""
        result = torch.empty(len(self.frames), *whole, device=self.device)
        for place, generator, n in zip(result, self.generators, self.frames, strict=True):
            shape = own(n)
            if shape == whole:
                place.normal_(generator=generator)
            else:
                _, rows, columns = shape
                draws = torch.randn(shape, generator=generator, device=self.device)
                place.zero_()[:, :rows, :columns] = draws
        return result

    def uniform(self, heads: int) -> Tensor:
        """Uniform on [0, 1), shape (batch, heads)."""
        draws = [torch.rand(heads, generator=g, device=self.device) for g in self.generators]
        return torch.stack(draws)
