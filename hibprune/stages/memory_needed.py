"""Whether inputs as long as a recipe wants to export and to time with fit into memory."""

from __future__ import annotations

from collections import Counter

import torch

from hibprune.execution.memory import free_bytes, peak_bytes
from hibprune.models.attention import frame_count, frozen, heads_of, input_length
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.families import has_decoder
from hibprune.records.medium import Length

ALWAYS_FITS: dict[str, float] = {"seconds": 60, "tokens": 4096}
"""Of one batch; what is less is not estimated."""
BYTES_PER_NUMBER = 4
ATTENTION_COPIES = 2
"""Exported graphs hold the attention of all heads before and after the softmax."""


def room_fault(checkpoint: Checkpoint, length: Length, batch: int) -> str | None:
    """Why a batch of inputs of some length cannot go through the model here, and what to do.

    None when it can.

    Extrapolated from short inputs: what a front end makes grows with the length, what attention
    makes with its square. An estimate from below.
    """
    if length.value * batch <= ALWAYS_FITS[length.unit]:
        return None
    needed = batch * _bytes_of_one(checkpoint, length)
    free = free_bytes(torch.device("cpu"))
    if needed <= free:
        return None
    of_one = f"{length}" if batch == 1 else f"{batch} inputs of {length}"
    return (
        f"{of_one} would take {needed / 1e9:,.0f} GB of memory, and {free / 1e9:,.0f} GB are "
        "free: set shorter ones"
    )


def _bytes_of_one(checkpoint: Checkpoint, length: Length) -> float:
    model, prepare = checkpoint.model, checkpoint.preprocessor
    short, twice = (Length(value=value, unit=length.unit) for value in (1, 2))
    if length.unit == "tokens":
        short, twice = (Length(value=value, unit="tokens") for value in (16, 32))
    example = prepare.example(short, 1)
    device = next(model.parameters()).device
    inputs = {name: value.to(device) for name, value in example.items()}
    if has_decoder(model):
        start = model.config.decoder_start_token_id
        inputs["decoder_input_ids"] = torch.full((1, 1), start, device=device)
    with frozen(model), torch.no_grad():
        taken = peak_bytes(lambda: model(**inputs), device)
    at_short = input_length(model, example)
    # No more where every input is filled up to one length.
    more = input_length(model, prepare.example(twice, 1)) - at_short
    wanted = at_short + more * (length.value - short.value) / (twice.value - short.value)
    frames = frame_count(model, round(wanted))
    # A layer at a time.
    heads = max(Counter(head.layer for head in heads_of(model)).values(), default=0)
    attention = ATTENTION_COPIES * BYTES_PER_NUMBER * heads * float(frames) ** 2
    return taken * wanted / at_short + attention
