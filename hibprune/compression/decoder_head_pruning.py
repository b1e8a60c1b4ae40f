"""Physical removal of heads from a decoder's self- and cross-attention, and how they reload.

Which heads went stands in `config.pruned_decoder_heads` and `config.pruned_cross_heads`, which
importing hibprune teaches the models to read: for each layer its number of heads at first, and
which of them are gone. A layer keeps a head of each: what a decoder remembers from step to step
are keys and values, by whose length it tells how many tokens were said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hibprune.compression.attention_pruning import remove_heads_of_layer
from hibprune.compression.reloading import Rebuild, gone_places, remembered, require_layers
from hibprune.models.attention import (
    attention_sites,
    gone_heads,
    has_stack,
    head_count,
    stack_layers,
)
from hibprune.models.families import family_of, has_decoder
from hibprune.models.layouts import Family, Stack
from hibprune.records.units import DECODER_CROSS, Head, heads_by_layer


def remove_decoder_heads(model: PreTrainedModel, heads: Iterable[Head]) -> None:
    """Remove heads of a decoder from a live model, for good; those already gone are passed over.

    Raises:
        IndexError: a layer has no such head, or the model no such stack.
        ValueError: a layer would be left without heads.
    """
    wanted: dict[str, list[Head]] = {}
    for head in heads:
        wanted.setdefault(head.stack, []).append(head)
    stacks = {one.name: one for one in family_of(model.config.model_type).decoder_attention}
    for name, own in wanted.items():
        if name not in stacks or not has_decoder(model):
            raise IndexError(f"the model has no heads of {name}")
        _remove_of_stack(model, stacks[name], own)


def _remove_of_stack(model: PreTrainedModel, stack: Stack, heads: Sequence[Head]) -> None:
    layers = stack_layers(model.base_model, stack)
    before = _places(model, stack)
    gone = {number: set(indices) for number, indices in heads_by_layer(heads).items()}
    for number, indices in gone.items():
        _require_known(layers, number, indices, stack)
    for number, indices in gone.items():
        remove_heads_of_layer(layers[number], indices, stack)
    told = {}
    for number, layer in enumerate(layers):
        attention = layer.get_submodule(stack.attention)
        own = gone_heads(attention)
        told[str(number)] = remembered(head_count(attention, stack) + len(own), own)
    assert stack.gone_in_config is not None
    setattr(model.config, stack.gone_in_config, told)
    if stack.name == DECODER_CROSS:
        _tell_alignment(model, before, _places(model, stack))


def _require_known(
    layers: Sequence[nn.Module], number: int, indices: set[int], stack: Stack
) -> None:
    if not 0 <= number < len(layers):
        raise IndexError(f"the model has layers 0 to {len(layers) - 1}, not {number}")
    attention = layers[number].get_submodule(stack.attention)
    already = gone_heads(attention)
    count = head_count(attention, stack) + len(already)
    beyond = sorted(index for index in indices if not 0 <= index < count)
    if beyond:
        raise IndexError(f"layer {number} has heads 0 to {count - 1}, not {beyond}")
    if len(already | indices) == count:
        raise ValueError(f"layer {number} of {stack.name} has to keep a head")


def _places(model: PreTrainedModel, stack: Stack) -> dict[int, tuple[Head, ...]]:
    return {site.layer: site.heads for site in attention_sites(model, [stack.name])}


def _tell_alignment(
    model: PreTrainedModel, before: dict[int, tuple[Head, ...]], after: dict[int, tuple[Head, ...]]
) -> None:
    """Let Whisper find its heads that tell the time of a word, which it names by their place."""
    generation: Any = getattr(model, "generation_config", None)
    aligned = getattr(generation, "alignment_heads", None)
    if not aligned:
        return
    found = []
    for layer, place in aligned:
        if not (layer in before and 0 <= place < len(before[layer])):
            continue
        head = before[layer][place]
        if head in after[layer]:
            found.append([layer, after[layer].index(head)])
    generation.alignment_heads = found or None


def rebuilding_decoder_heads(family: Family) -> Rebuild:
    """How a base model of a family takes out the heads of its decoder that are gone."""
    return partial(_rebuild, family)


def _rebuild(family: Family, base_model: Any, config: Any) -> None:
    """Take out what the configuration says is gone.

    Raises:
        ValueError: the configuration contradicts the model.
    """
    for stack in family.decoder_attention:
        field = stack.gone_in_config
        told = None if field is None else getattr(config, field, None)
        if field is None or not told or not has_stack(base_model, stack):
            continue
        layers = stack_layers(base_model, stack)
        require_layers(field, told.keys(), len(layers))
        for number, (count, mask) in told.items():
            layer = layers[int(number)]
            there = head_count(layer.get_submodule(stack.attention), stack)
            if there != count:
                raise ValueError(f"{field} speaks of {count} heads in a layer that has {there}")
            gone = gone_places(field, "heads", count, mask)
            if len(gone) == count:
                raise ValueError(f"{field} leaves layer {number} without heads")
            remove_heads_of_layer(layer, set(gone), stack)
