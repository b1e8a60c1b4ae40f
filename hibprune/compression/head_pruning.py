"""Teaches Hugging Face's classes `_prune_heads`, so that `model.prune_heads` works everywhere.

transformers calls `self.base_model._prune_heads` from `prune_heads` and again, twice per load, from
`init_weights` whenever `config.pruned_heads` is set; most speech models do not define it. Importing
hibprune supplies it, which is also what lets `from_pretrained` rebuild a pruned model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hibprune.compression.attention_pruning import remove_heads_of_layer
from hibprune.compression.channel_pruning import rebuilding_channels
from hibprune.compression.decoder_head_pruning import rebuilding_decoder_heads
from hibprune.compression.neuron_pruning import rebuilding_neurons
from hibprune.compression.projection_ranks import rebuilding_ranks
from hibprune.compression.reloading import teach_rebuilding
from hibprune.compression.wavlm import wavlm_attention_forward
from hibprune.models.attention import gone_heads, head_count, stack_layers
from hibprune.models.families import FAMILIES
from hibprune.models.layouts import Family, Stack


def teach_pruning(module: ModuleType) -> None:
    """Give the family defined in a modeling module of transformers what `prune_heads` needs.

    Idempotent: called once for every import of the module.
    """
    for family in FAMILIES:
        if family.modeling_module != module.__name__:
            continue
        rebuilds = (
            rebuilding_decoder_heads(family),
            rebuilding_neurons(family),
            rebuilding_channels(family),
            rebuilding_ranks(family),
        )
        for name in (family.base_class, *(name for name, path in family.parts if not path)):
            teach_rebuilding(getattr(module, name), rebuilds)
        for name, path in ((family.base_class, ""), *family.parts):
            getattr(module, name)._prune_heads = _prune_heads_of(_stack_within(family, path))
        for name in family.attention_classes:
            attention = getattr(module, name)
            if family.model_type == "wavlm":
                attention.forward = wavlm_attention_forward
            # Looked for in the class itself: some classes inherit from one that was taught.
            elif "forward_of_transformers" not in vars(attention):
                attention.forward_of_transformers = attention.forward
                attention.forward = _without_heads_too(attention.forward, family)
            if family.model_type == "wav2vec2-conformer":
                attention._apply_rotary_embedding = _rotary_for_any_heads


def _stack_within(family: Family, path: str) -> Stack | None:
    """The stack to prune as a part of the base model sees it; None where it is not in there."""
    layers = family.encoder.layers
    if path and not layers.startswith(f"{path}."):
        return None
    return replace(family.encoder, layers=layers.removeprefix(f"{path}." if path else ""))


def _prune_heads_of(stack: Stack | None) -> Callable[[Any, Mapping[int, Iterable[int]]], None]:
    def _prune_heads(self: Any, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove heads `{layer: [original indices]}`; those already gone are passed over.

        A negative layer counts from the last, as in transformers' own models.
        """
        if stack is None:
            return
        layers = stack_layers(self, stack)
        attentions = [layer.get_submodule(stack.attention) for layer in layers]
        try:
            _require_known(heads_to_prune, attentions, stack)
            for number, heads in heads_to_prune.items():
                remove_heads_of_layer(layers[number], set(heads), stack)
        finally:
            # prune_heads has written the configuration by now: make it tell the truth.
            self.config.pruned_heads = {
                number: sorted(gone_heads(attention))
                for number, attention in enumerate(attentions)
                if gone_heads(attention)
            }

    return _prune_heads


def _require_known(
    heads_to_prune: Mapping[int, Iterable[int]], attentions: Sequence[nn.Module], stack: Stack
) -> None:
    layers = len(attentions)
    for number, heads in heads_to_prune.items():
        if not -layers <= number < layers:
            raise IndexError(f"the model has layers 0 to {layers - 1}, not {number}")
        attention = attentions[number]
        count = head_count(attention, stack) + len(gone_heads(attention))
        beyond = [head for head in heads if not 0 <= head < count]
        if beyond:
            raise IndexError(f"layer {number} has heads 0 to {count - 1}, not {beyond}")


def _without_heads_too(
    original: Callable[..., Any], family: Family
) -> Callable[..., tuple[Tensor | None, ...]]:
    """A layer that has lost every head gives out what its output projection makes of nothing.

    The reshapes of some families fail on tensors without elements, and ONNX reads a 0 in a shape
    as "keep this dimension". The weights it gives out have no heads either, which keeps its place
    among the layers in `outputs.attentions`.
    """

    stack = family.encoder

    @functools.wraps(original)
    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        if getattr(self, stack.value).out_features > 0:
            return original(self, *inputs, **named)
        hidden_states = inputs[0] if inputs else named[family.attention_input]
        batch, frames, _ = hidden_states.shape
        weights = hidden_states.new_zeros(batch, 0, frames, frames)
        if not stack.projects_inside:
            return (hidden_states[..., :0], weights, None)[: family.returns]
        projection = getattr(self, stack.output.rpartition(".")[2])
        if projection.bias is None:
            return (torch.zeros_like(hidden_states), weights, None)[: family.returns]
        return (projection.bias.expand(hidden_states.shape), weights, None)[: family.returns]

    return forward


def _rotary_for_any_heads(self: Any, hidden_states: Tensor, embeddings: Tensor) -> Tensor:
    """Rotate hidden states (batch, frames, width) before projection, where all heads still are.

    Hugging Face splits the width by the number of heads left, which is wrong after pruning.
    """
    frames = hidden_states.shape[1]
    by_head: Tensor = hidden_states.unflatten(-1, (-1, self.head_size)).transpose(0, 1)
    cos, sin = embeddings[0, :frames], embeddings[1, :frames]
    begin, end = by_head.chunk(2, dim=-1)
    rotated = by_head * cos + torch.cat((-end, begin), dim=-1) * sin
    return rotated.transpose(0, 1).flatten(-2)
