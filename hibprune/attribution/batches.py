"""Scores samples in batches: by length, within memory, and so that a killed run can be taken up.

Samples are independent, so batching changes nothing but the time. What no attention reaches (the
convolutional front end, or the embeddings of tokens) is computed once per sample, without padding;
padding is added behind it, so that a padded batch gives what each sample gives alone. An encoder
that insists on filling all its positions runs on the frames its samples have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attention import (
    Prefix,
    attention_read,
    frozen,
    input_length,
    positions_fitted,
    prefix_recorded,
)
from hibprune.attribution.base import Row, Sample, Session
from hibprune.errors import UserError
from hibprune.families import family_of
from hibprune.tasks import Batch

LONGEST_TO_SHORTEST = 1.25
"""Clips share a batch while the longest is at most this many times the shortest."""


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


ScoreBatch = Callable[[CalibrationBatch, Callable[[float, float], None]], Tensor]
"""Scores (batch, heads) of one batch; reports the share done (0–1) and the current loss."""


def score_in_batches(
    model: PreTrainedModel,
    samples: Sequence[Sample],
    score_batch: ScoreBatch,
    batch_size: Callable[[int], int],
    session: Session,
    attention: bool = True,
) -> list[Row]:
    """Rows of scores in the order of `samples`; rows in `session.done` are not computed again.

    `batch_size` gives the largest batch for a length of input. When memory runs out all the same,
    the batch is halved. `attention` asks for the unmodified model's.

    Raises:
        UserError: a single sample does not fit into memory.
    """
    rows = {sample.id: session.done[sample.id] for sample in samples if sample.id in session.done}
    lengths = {sample.id: input_length(model, sample.inputs) for sample in samples}
    ratio = 1.0 if family_of(model.config.model_type).equal_lengths else LONGEST_TO_SHORTEST
    waiting = [sample for sample in samples if sample.id not in rows]
    waiting.sort(key=lambda sample: (-lengths[sample.id], sample.id))
    largest = len(samples)
    with frozen(model):
        while waiting:
            longest = lengths[waiting[0].id]
            size = max(1, min(largest, batch_size(longest)))
            chosen = [sample for sample in waiting[:size] if lengths[sample.id] >= longest / ratio]

            def report(share: float, loss: float, size: int = len(chosen)) -> None:
                session.progress(len(rows) + share * size, len(samples), loss)

            def score(
                chosen: list[Sample] = chosen, report: Callable[[float, float], None] = report
            ) -> Tensor:
                with positions_fitted(model, chosen[0].inputs):
                    return score_batch(read_unmodified(model, chosen, attention), report)

            scores = _or_none_without_memory(score)
            if scores is None:
                if len(chosen) == 1:
                    raise UserError(
                        f"{chosen[0].id}: attribution of this sample alone does not fit into "
                        "memory: use shorter ones (of sound: max_seconds) or a machine with more"
                    )
                largest = len(chosen) // 2
                session.notice(f"memory ran out; going on with batches of {largest}")
                continue
            rows.update(
                (sample.id, tuple(row)) for sample, row in zip(chosen, scores.tolist(), strict=True)
            )
            waiting = waiting[len(chosen) :]
            session.save(rows)
            session.progress(len(rows), len(samples), None)
    return [rows[sample.id] for sample in samples]


def _or_none_without_memory(compute: Callable[[], Tensor]) -> Tensor | None:
    try:
        return compute()
    except MemoryError:
        pass
    except RuntimeError as error:
        # torch.OutOfMemoryError on a GPU; on a CPU the allocator raises a plain RuntimeError.
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
    # Left here, outside the handlers, so that no traceback holds on to the batch's tensors.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def read_unmodified(
    model: PreTrainedModel, samples: Sequence[Sample], attention: bool = True
) -> CalibrationBatch:
    """Run the encoder once on each sample, unpadded, and stack what it computed."""
    family = family_of(model.config.model_type)
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    device = next(model.parameters()).device
    prefixes: list[Prefix] = []
    attentions: list[dict[int, Tensor]] = []
    frames: list[int] = []
    for sample in samples:
        inputs = {
            name: value.to(device)
            for name, value in sample.inputs.items()
            if not name.startswith("decoder_")
        }
        with torch.no_grad(), ExitStack() as stack:
            stack.enter_context(positions_fitted(model, inputs))
            prefixes.append(stack.enter_context(prefix_recorded(model)))
            attentions.append(stack.enter_context(attention_read(model)) if attention else {})
            encoder(**inputs, output_attentions=attention)
        path, axis = family.prefix[-1]
        frames.append(prefixes[-1][path][0].shape[axis])

    longest = max(frames)
    valid = torch.arange(longest, device=device) < torch.tensor(frames, device=device)[:, None]
    return CalibrationBatch(
        batch=Batch(
            ids=tuple(sample.id for sample in samples),
            inputs=_stacked_inputs(model, samples, device),
            targets=tuple(sample.target for sample in samples),
            frames=tuple(frames),
        ),
        prefix={
            path: tuple(
                _stacked([prefix[path][place] for prefix in prefixes])
                for place in range(len(prefixes[0][path]))
            )
            for path, _ in family.prefix
        },
        attention={
            layer: _stacked([attention[layer] for attention in attentions])
            for layer in attentions[0]
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
