"""Scores samples in batches: by length, within memory, and so that a killed run can be taken up.

Samples are independent, so batching changes nothing but the time. What no attention reaches (the
convolutional front end) is computed once per sample, without padding; padding is added behind it,
so that a padded batch gives what each sample gives alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attention import Prefix, attention_read, frozen, prefix_recorded
from hibprune.attribution.base import Row, Sample, Session
from hibprune.errors import UserError
from hibprune.families import Family, family_of
from hibprune.tasks import Batch

LONGEST_TO_SHORTEST = 1.25
"""Clips share a batch while the longest is at most this many times the shortest."""


@dataclass(frozen=True)
class CalibrationBatch:
    """Some samples, with what the unmodified model computes on them.

    `attention` holds each layer's weights (batch, heads, frames, frames), zero where padded;
    `valid` (batch, frames) is true on frames that are not padding.
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
) -> list[Row]:
    """Rows of scores in the order of `samples`; rows in `session.done` are not computed again.

    `batch_size` gives the largest batch for a number of input elements per clip. When memory runs
    out all the same, the batch is halved.

    Raises:
        UserError: a single sample does not fit into memory.
    """
    rows = {sample.id: session.done[sample.id] for sample in samples if sample.id in session.done}
    family = family_of(model.config.model_type)
    waiting = [sample for sample in samples if sample.id not in rows]
    waiting.sort(key=lambda sample: (-_length(sample), sample.id))
    largest = len(samples)
    with frozen(model):
        while waiting:
            chosen = _next_batch(waiting, min(largest, batch_size(_length(waiting[0]))), family)

            def report(share: float, loss: float, size: int = len(chosen)) -> None:
                session.progress(len(rows) + share * size, len(samples), loss)

            scores = _or_none_without_memory(
                lambda chosen=chosen, report=report: score_batch(  # type: ignore[misc]
                    read_unmodified(model, chosen), report
                )
            )
            if scores is None:
                if len(chosen) == 1:
                    raise UserError(
                        f"{chosen[0].id}: attribution of this clip alone does not fit into memory: "
                        "use shorter clips (max_seconds) or a machine with more memory"
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


def _length(sample: Sample) -> int:
    return next(iter(sample.inputs.values())).numel()


def _next_batch(waiting: list[Sample], size: int, family: Family) -> list[Sample]:
    longest = _length(waiting[0])
    shortest = longest if family.padding_reaches_frames else longest / LONGEST_TO_SHORTEST
    return [sample for sample in waiting[: max(1, size)] if _length(sample) >= shortest]


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


def read_unmodified(model: PreTrainedModel, samples: Sequence[Sample]) -> CalibrationBatch:
    """Run the model once on each sample, unpadded, and stack what it computed."""
    family = family_of(model.config.model_type)
    device = next(model.parameters()).device
    prefixes: list[Prefix] = []
    attentions: list[dict[int, Tensor]] = []
    frames: list[int] = []
    for sample in samples:
        inputs = {name: value.to(device) for name, value in sample.inputs.items()}
        with torch.no_grad(), prefix_recorded(model) as prefix, attention_read(model) as attention:
            model(**inputs, output_attentions=True)
        prefixes.append(prefix)
        attentions.append(attention)
        path, axis = family.prefix[-1]
        frames.append(prefix[path][0].shape[axis])

    longest = max(frames)
    valid = torch.arange(longest, device=device) < torch.tensor(frames, device=device)[:, None]
    return CalibrationBatch(
        batch=Batch(
            ids=tuple(sample.id for sample in samples),
            inputs=_stacked_inputs(samples, device, family),
            targets=tuple(sample.target for sample in samples),
            frames=tuple(frames),
        ),
        prefix={
            path: tuple(
                _stacked([prefix[path][place] for prefix in prefixes], [axis])
                for place in range(len(prefixes[0][path]))
            )
            for path, axis in family.prefix
        },
        attention={
            layer: _stacked([attention[layer] for attention in attentions], [2, 3])
            for layer in attentions[0]
        },
        valid=valid,
    )


def _stacked_inputs(
    samples: Sequence[Sample], device: torch.device, family: Family
) -> dict[str, Tensor]:
    inputs = {
        name: _stacked([sample.inputs[name].to(device) for sample in samples], [1])
        for name in samples[0].inputs
    }
    lengths = torch.tensor([_length(sample) for sample in samples], device=device)
    if family.raw_audio and len(set(lengths.tolist())) > 1:
        places = torch.arange(int(lengths.max()), device=device)
        inputs["attention_mask"] = (places < lengths[:, None]).long()
    return inputs


def _stacked(tensors: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """Concatenate along the batch, zero-padding `axes` at their end to the longest."""
    padded = []
    for tensor in tensors:
        padding = [0, 0] * tensor.dim()
        for axis in axes:
            # `pad` counts dimensions from the last, a (front, back) pair for each.
            longest = max(other.shape[axis] for other in tensors)
            padding[2 * (tensor.dim() - 1 - axis) + 1] = longest - tensor.shape[axis]
        padded.append(functional.pad(tensor, padding))
    return torch.cat(padded)
