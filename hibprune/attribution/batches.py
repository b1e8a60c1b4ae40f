"""Scores samples in batches: by length, as large as fits, and so that a killed run can be taken up.

Samples are independent, so batching changes nothing but the time. What no attention reaches (the
convolutional front end, or the embeddings of tokens) is computed once per sample, without padding;
padding is added behind it, so that a padded batch gives what each sample gives alone. An encoder
that insists on filling all its positions runs on the frames its samples have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attribution.interface import BatchedMethod
from hibprune.attribution.session import Row, Sample, Session
from hibprune.errors import UserError
from hibprune.execution.memory import or_none_without_memory
from hibprune.models.attention import (
    attention_read,
    frozen,
    input_length,
    logit_count,
    positions_fitted,
    run_encoder,
)
from hibprune.models.families import family_of
from hibprune.models.replay import Prefix, prefix_recorded
from hibprune.tasks import Batch

LONGEST_TO_SHORTEST = 1.25
"""Clips share a batch while the longest is at most this many times the shortest."""

T = TypeVar("T")


@dataclass(frozen=True)
class CalibrationBatch:
    """Some samples, with what the unmodified model computes on them.

    `attention` holds each layer's weights (batch, heads, frames, frames), zero where padded, or
    nothing where they were not asked for; `valid` (batch, frames) is true on frames that are not
    padding.
    """

    batch: Batch
    prefix: Prefix
    attention: dict[int, Tensor]
    valid: Tensor

    @property
    def valid_pairs(self) -> Tensor:
        """True where neither query nor key is padding: (batch, 1, frames, frames)."""
        return self.valid[:, None, :, None] & self.valid[:, None, None, :]

    def repeated(self, times: int) -> CalibrationBatch:
        """Every sample `times` times in a row, without their attention."""

        def each(values: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(value for value in values for _ in range(times))

        batch = self.batch
        return CalibrationBatch(
            batch=Batch(
                ids=each(batch.ids),
                inputs={k: value.repeat_interleave(times, 0) for k, value in batch.inputs.items()},
                targets=each(batch.targets),
                frames=each(batch.frames),
                logits=each(batch.logits),
            ),
            prefix={
                path: tuple(part.repeat_interleave(times, 0) for part in parts)
                for path, parts in self.prefix.items()
            },
            attention={},
            valid=self.valid.repeat_interleave(times, 0),
        )


def no_room(sample: Sample, fitting: float | None = None) -> UserError:
    """That one sample is too much, and how long others may be as a share of its length."""
    shorter = "shorter ones" if fitting is None else f"ones at most {fitting:.2g} times as long"
    return UserError(
        f"{sample.id}: attribution of this sample alone does not fit into "
        f"memory: use {shorter} (of sound: max_seconds) or a machine with more"
    )


def mean_over_frames(per_frame: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over a sample's valid frames: (batch, heads, frames) → (batch, heads); all if None."""
    if valid is None:
        return per_frame.mean(-1)
    mask = valid[:, None, :].to(per_frame.dtype)
    return (per_frame * mask).sum(-1) / mask.sum(-1)


Report = Callable[[float, float], None]
"""Takes the share of a batch that is done (0–1) and the current loss."""

ScoreBatch = Callable[[CalibrationBatch, Report], Tensor]
"""Scores (batch, heads) of one batch."""

Found = TypeVar("Found")


class LengthBatches:
    """Hands samples to some work in batches, by length and within memory.

    `batch_size` gives the largest batch for a length of input. When memory runs out all the same,
    batches are halved from then on. `keep` holds on to what the unmodified model computed, for work
    that goes over the same samples many times.
    """

    def __init__(
        self,
        method: BatchedMethod,
        model: PreTrainedModel,
        batch_size: Callable[[int], int],
        notice: Callable[[str], None],
        keep: bool = False,
    ) -> None:
        self._attention = method.reads_attention
        self._model = model
        self._batch_size = batch_size
        self._notice = notice
        self._largest: int | None = None
        self._kept: dict[str, Unmodified] | None = {} if keep else None

    def each(
        self, samples: Sequence[Sample], work: Callable[[CalibrationBatch], Found]
    ) -> Iterator[tuple[list[Sample], Found]]:
        """Each batch, the longest samples first, with what `work` found; run it within `frozen`.

        Raises:
            UserError: a single sample does not fit into memory.
        """
        lengths = {sample.id: input_length(self._model, sample.inputs) for sample in samples}
        equal = family_of(self._model.config.model_type).equal_lengths
        ratio = 1.0 if equal else LONGEST_TO_SHORTEST
        waiting = sorted(samples, key=lambda sample: (-lengths[sample.id], sample.id))
        while waiting:
            longest = lengths[waiting[0].id]
            size = self._batch_size(longest)
            if self._largest is not None:
                size = min(size, self._largest)
            chosen = [
                sample
                for sample in waiting[: max(1, size)]
                if lengths[sample.id] >= longest / ratio
            ]

            def run(chosen: list[Sample] = chosen) -> Found:
                with positions_fitted(self._model, chosen[0].inputs):
                    return work(self._read(chosen))

            found = or_none_without_memory(run)
            if found is None:
                if len(chosen) == 1:
                    raise no_room(chosen[0])
                self._largest = len(chosen) // 2
                self._notice(f"memory ran out; going on with batches of {self._largest}")
                continue
            waiting = waiting[len(chosen) :]
            yield chosen, found

    def _read(self, samples: Sequence[Sample]) -> CalibrationBatch:
        if self._kept is None:
            return read_unmodified(self._model, samples, self._attention)
        for sample in samples:
            if sample.id not in self._kept:
                self._kept[sample.id] = _read_sample(self._model, sample, self._attention)
        return _as_batch(self._model, samples, [self._kept[sample.id] for sample in samples])


def score_in_batches(
    method: BatchedMethod,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    score_batch: ScoreBatch,
    batch_size: Callable[[int], int],
    session: Session,
) -> list[Row]:
    """Rows of scores in the order of `samples`; rows in `session.done` are not computed again.

    Each process computes a share, and all exchange their rows after every batch until none is left.

    `batch_size` is that of `LengthBatches`.

    Raises:
        UserError: a single sample does not fit into memory.
    """
    rows = {sample.id: session.done[sample.id] for sample in samples if sample.id in session.done}

    def score(calibration: CalibrationBatch) -> Tensor:
        def report(share: float, loss: float) -> None:
            done = len(rows) + share * len(calibration.batch.ids)
            session.progress(done, len(samples), loss)

        return score_batch(calibration, report)

    batches = LengthBatches(method, model, batch_size, session.notice)
    scored = batches.each(session.waiting(samples), score)
    with frozen(model):
        while any(sample.id not in rows for sample in samples):
            fresh: dict[str, Row] = {}
            for own, scores in islice(scored, 1):
                fresh = {one.id: tuple(row) for one, row in zip(own, scores.tolist(), strict=True)}
            rows.update(session.processes.gathered(fresh))
            session.save(rows)
            session.progress(len(rows), len(samples), None)
    return [rows[sample.id] for sample in samples]


@dataclass(frozen=True)
class Unmodified:
    """What the unmodified model computes on one sample; batch dimensions are 1."""

    prefix: Prefix
    attention: dict[int, Tensor]
    frames: int


def read_unmodified(
    model: PreTrainedModel, samples: Sequence[Sample], attention: bool = True
) -> CalibrationBatch:
    """Run the encoder once on each sample, unpadded, and stack what it computed.

    `attention` asks for the weights, which a fused kernel would not have to make.
    """
    return _as_batch(model, samples, [_read_sample(model, one, attention) for one in samples])


def _read_sample(model: PreTrainedModel, sample: Sample, attention: bool) -> Unmodified:
    with torch.no_grad(), ExitStack() as stack:
        prefix = stack.enter_context(prefix_recorded(model))
        weights = stack.enter_context(attention_read(model)) if attention else {}
        run_encoder(model, sample.inputs, output_attentions=attention)
    path, axis = family_of(model.config.model_type).prefix[-1]
    return Unmodified(prefix, weights, prefix[path][0].shape[axis])


def _as_batch(
    model: PreTrainedModel, samples: Sequence[Sample], read: Sequence[Unmodified]
) -> CalibrationBatch:
    device = next(model.parameters()).device
    frames = [one.frames for one in read]
    valid = torch.arange(max(frames), device=device) < torch.tensor(frames, device=device)[:, None]
    return CalibrationBatch(
        batch=Batch(
            ids=tuple(sample.id for sample in samples),
            inputs=_stacked_inputs(model, samples, device),
            targets=tuple(sample.target for sample in samples),
            frames=tuple(frames),
            logits=tuple(logit_count(model, input_length(model, one.inputs)) for one in samples),
        ),
        prefix={
            path: tuple(map(_stacked, zip(*(one.prefix[path] for one in read), strict=True)))
            for path in read[0].prefix
        },
        attention={
            layer: _stacked([one.attention[layer] for one in read]) for layer in read[0].attention
        },
        valid=valid,
    )


def _stacked_inputs(
    model: PreTrainedModel, samples: Sequence[Sample], device: torch.device
) -> dict[str, Tensor]:
    """Inputs of all samples, with a mask of the valid ones where their lengths differ.

    A tokenizer's own mask is continued; tokens for a decoder are padded behind their end, where
    they reach nothing before it.
    """
    inputs = {
        name: _stacked([sample.inputs[name].to(device) for sample in samples])
        for name in samples[0].inputs
    }
    lengths = torch.tensor([input_length(model, sample.inputs) for sample in samples])
    if "attention_mask" not in inputs and len(lengths.unique()) > 1:
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        inputs["attention_mask"] = mask.long().to(device)
    return inputs


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along the batch, zero-padding every other dimension at its end to the longest."""
    longest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        # `pad` counts dimensions from the last, a (front, back) pair for each.
        padding = [
            amount
            for size, most in zip(reversed(tensor.shape[1:]), reversed(longest[1:]), strict=True)
            for amount in (0, most - size)
        ]
        padded.append(functional.pad(tensor, padding))
    return torch.cat(padded)
