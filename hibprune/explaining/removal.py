"""Inputs without some of their positions: of sound silenced, of a text left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, Sample
from hibprune.attribution.methods import Answer
from hibprune.errors import UserError
from hibprune.explaining.subjects import Subject, follows_time, heard
from hibprune.models.attention import (
    frame_count,
    input_length,
    logit_count,
    positions_fitted,
)
from hibprune.models.checkpoint import Checkpoint
from hibprune.tasks import Batch

AT_ONCE = 16
POSITIONS_AT_ONCE = 3000
AS = {"sound": "silence", "text": "tokens left out"}
"""What takes the place of what is removed, by medium."""


@dataclass(frozen=True)
class Removal:
    """An input whose positions can be removed. `removable` are all but a text's special tokens."""

    checkpoint: Checkpoint
    sample: Sample
    positions: int
    removable: tuple[int, ...]
    waveform: np.ndarray | None = None
    """What the model hears of a clip; None of a text."""

    def without(self, gone: Collection[int]) -> Sample:
        """The sample without some positions."""
        if not gone:
            return self.sample
        if self.waveform is not None:
            return replace(self.sample, inputs=self._silenced(gone))
        left = torch.tensor([place for place in range(self.positions) if place not in set(gone)])
        inputs = {name: value[:, left] for name, value in self.sample.inputs.items()}
        return replace(self.sample, inputs=inputs)

    def baseline(self) -> Sample:
        """The sample with all removed and as long as before: a text's tokens are masked."""
        if self.waveform is not None:
            return replace(self.sample, inputs=self._silenced(self.removable))
        tokenizer = self.checkpoint.preprocessor.part
        masked = tokenizer.mask_token_id
        if masked is None:
            masked = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        numbers = self.sample.inputs["input_ids"].clone()
        numbers[:, list(self.removable)] = masked
        return replace(self.sample, inputs={**self.sample.inputs, "input_ids": numbers})

    def _silenced(self, gone: Collection[int]) -> dict[str, Tensor]:
        assert self.waveform is not None
        waveform = self.waveform.copy()
        ends = np.linspace(0, len(waveform), self.positions + 1).round().astype(int)
        for place in gone:
            waveform[ends[place] : ends[place + 1]] = 0
        return self.checkpoint.calibration_inputs(waveform)


def removal_of(checkpoint: Checkpoint, subject: Subject) -> Removal:
    """The ways to remove positions of a clip or text.

    Raises:
        UserError: its positions are neither frames nor tokens.
    """
    positions = subject.axis.positions
    if isinstance(subject.reading, str):
        special = set(checkpoint.preprocessor.part.all_special_ids)
        numbers = subject.sample.inputs["input_ids"][0].tolist()
        words = tuple(place for place, one in enumerate(numbers) if one not in special)
        return Removal(checkpoint, subject.sample, positions, words)
    if not follows_time(checkpoint):
        raise UserError(
            f"positions of {checkpoint.family.model_type} are patches, which cannot be silenced"
        )
    waveform = heard(checkpoint, subject.reading)
    return Removal(checkpoint, subject.sample, positions, tuple(range(positions)), waveform)


def answers(
    model: PreTrainedModel, loss: Loss, samples: Sequence[Sample], answer: Answer
) -> list[float]:
    """The answer's probability, or its log-likelihood, for each of some inputs. Within `frozen`."""
    found: list[float] = [0.0] * len(samples)
    by_length: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        by_length.setdefault(input_length(model, sample.inputs), []).append(place)
    for length, places in by_length.items():
        size = max(1, min(AT_ONCE, POSITIONS_AT_ONCE // max(1, frame_count(model, length))))
        for start in range(0, len(places), size):
            chosen = places[start : start + size]
            losses = _losses(model, loss, [samples[place] for place in chosen], length)
            told = (-losses).exp() if answer == "probability" else -losses
            for place, value in zip(chosen, told.tolist(), strict=True):
                found[place] = value
    return found


def _losses(model: PreTrainedModel, loss: Loss, samples: Sequence[Sample], length: int) -> Tensor:
    """The loss of inputs of one length, in one batch."""
    device = next(model.parameters()).device
    inputs = {
        name: torch.cat([sample.inputs[name] for sample in samples]).to(device)
        for name in samples[0].inputs
    }
    batch = Batch(
        ids=tuple(sample.id for sample in samples),
        inputs=inputs,
        targets=tuple(sample.target for sample in samples),
        frames=(frame_count(model, length),) * len(samples),
        logits=(logit_count(model, length),) * len(samples),
    )
    with torch.no_grad(), positions_fitted(model, inputs):
        return loss(model, batch)
