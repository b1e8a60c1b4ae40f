"""When an optimisation may stop: once the ranking of the heads has been stable for a while.

A probe of the first samples decides for all, so that the number of steps depends neither on how
samples are batched nor on how much memory there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hibprune.attribution.session import Row
from hibprune.records.statistics import spearman

PROBE = 32
"""Samples, the first as they were drawn, whose mean scores are ranked."""
EVERY = 10
"""Steps from one checkpoint to the next."""
AGREEMENT = 0.99
"""Spearman correlation of two successive checkpoints that counts as stable."""
TIMES = 3
"""How often in a row they have to agree."""


class Probe:
    """The scores of some samples at every checkpoint, as far as they are known."""

    def __init__(self, samples: Sequence[str]) -> None:
        self._found: dict[str, list[Tensor]] = {sample: [] for sample in samples}

    def begin(self, samples: Sequence[str]) -> None:
        """Some samples start from the beginning, also after memory ran out on the way."""
        self._found.update((sample, []) for sample in samples)

    def add(self, samples: Sequence[str], scores: Tensor) -> None:
        """Scores (samples, heads) of some samples at their next checkpoint."""
        for sample, row in zip(samples, scores.double().cpu(), strict=True):
            self._found[sample].append(row)

    def settled(self) -> int | None:
        """The first checkpoint, from 1, by which the ranking is stable; None if it is not yet."""
        in_a_row = 0
        means = [
            torch.stack(rows).mean(0).tolist() for rows in zip(*self._found.values(), strict=False)
        ]
        for number, (before, after) in enumerate(pairwise(means), start=2):
            in_a_row = in_a_row + 1 if spearman(before, after) >= AGREEMENT else 0
            if in_a_row == TIMES:
                return number
        return None

    def rows_at(self, checkpoint: int) -> dict[str, Row]:
        """Every sample's scores at a checkpoint, from 1."""
        return {
            sample: tuple(rows[checkpoint - 1].tolist()) for sample, rows in self._found.items()
        }
