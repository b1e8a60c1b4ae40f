"""Teaches Hugging Face's classes `_prune_heads`, so that `model.prune_heads` works everywhere.

transformers calls `self.base_model._prune_heads` from `prune_heads` and again, twice per load, from
`init_weights` whenever `config.pruned_heads` is set; most speech models do not define it. Importing
hibprune supplies it, which is also what lets `from_pretrained` rebuild a pruned model.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import find_pruneable_heads_and_indices, prune_linear_layer

from hibprune.attention import encoder_layers
from hibprune.families import FAMILIES, Family
from hibprune.surgery.wavlm import wavlm_attention_forward


def teach_pruning(module: ModuleType) -> None:
    """Give the family defined in a modeling module of transformers what `prune_heads` needs.

    Idempotent: called once for every import of the module.
    """
    for family in FAMILIES:
        if family.modeling_module != module.__name__:
            continue
        base = getattr(module, family.base_class)
        attention = getattr(module, family.attention_class)
        base._prune_heads = _prune_heads_of(family)
        if family.model_type == "wavlm":
            attention.forward = wavlm_attention_forward
        elif not hasattr(attention.forward, "__wrapped__"):
            attention.forward = _without_heads_too(attention.forward, family)
        if family.model_type == "wav2vec2-conformer":
            attention._apply_rotary_embedding = _rotary_for_any_heads


def _prune_heads_of(family: Family) -> Callable[[Any, Mapping[int, Iterable[int]]], None]:
    def _prune_heads(self: Any, heads_to_prune: Mapping[int, Iterable[int]]) -> None:
        """Remove heads `{layer: [original indices]}`; those already gone are passed over.

        A negative layer counts from the last, as in transformers' own models.
        """
        layers = encoder_layers(self, family)
        try:
            _require_known(heads_to_prune, len(layers), self.config.num_attention_heads)
            for number, heads in heads_to_prune.items():
                _remove(layers[number], set(heads), family)
        finally:
            # prune_heads has written the configuration by now: make it tell the truth.
            gone = [_gone(layer.get_submodule(family.attention)) for layer in layers]
            self.config.pruned_heads = {
                number: sorted(heads) for number, heads in enumerate(gone) if heads
            }

    return _prune_heads


def _require_known(
    heads_to_prune: Mapping[int, Iterable[int]], layer_count: int, head_count: int
) -> None:
    for number, heads in heads_to_prune.items():
        if not -layer_count <= number < layer_count:
            raise IndexError(f"the model has layers 0 to {layer_count - 1}, not {number}")
        beyond = [head for head in heads if not 0 <= head < head_count]
        if beyond:
            raise IndexError(f"layer {number} has heads 0 to {head_count - 1}, not {beyond}")


def _gone(attention: nn.Module) -> set[int]:
    gone: set[int] = getattr(attention, "pruned_heads", set())
    return gone


def _remove(layer: nn.Module, heads: set[int], family: Family) -> None:
    attention: Any = layer.get_submodule(family.attention)
    count, size = getattr(attention, family.head_count), getattr(attention, family.head_size)
    new, rows = find_pruneable_heads_and_indices(heads, count, size, _gone(attention))
    if not new:
        return
    with warnings.catch_warnings():
        # A layer that loses its last head has weights without elements.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        for name in (family.query, family.key, family.value, *family.rows_per_head):
            if hasattr(attention, name):
                setattr(attention, name, _pruned_linear(getattr(attention, name), rows))
        path, _, name = family.output.rpartition(".")
        parent = layer.get_submodule(path)
        setattr(parent, name, _pruned_linear(getattr(parent, name), rows, dim=1))

    positions = rows[::size] // size
    for name, dim in family.parameters_per_head:
        if hasattr(attention, name):
            weight = getattr(attention, name)
            kept = weight.detach().index_select(dim, positions.to(weight.device)).clone()
            setattr(attention, name, nn.Parameter(kept, weight.requires_grad))
    setattr(attention, family.head_count, count - len(new))
    if family.width is not None:
        setattr(attention, family.width, (count - len(new)) * size)
    attention.pruned_heads = _gone(attention) | new


def _pruned_linear(linear: nn.Linear, kept: Tensor, dim: int = 0) -> nn.Linear:
    """transformers' own makes it float32, trainable and in training mode, whatever it was."""
    pruned: nn.Linear = prune_linear_layer(linear, kept, dim).to(linear.weight.dtype)
    for name, weight in pruned.named_parameters():
        weight.requires_grad_(linear.get_parameter(name).requires_grad)
    return pruned.train(linear.training)


def _without_heads_too(
    original: Callable[..., Any], family: Family
) -> Callable[..., tuple[Tensor | None, ...]]:
    """A layer that has lost every head gives out what its output projection makes of nothing.

    The reshapes of some families fail on tensors without elements, and ONNX reads a 0 in a shape
    as "keep this dimension". The weights it gives out have no heads either, which keeps its place
    among the layers in `outputs.attentions`.
    """

    @functools.wraps(original)
    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, family.head_count) > 0:
            return original(self, hidden_states, *args, **kwargs)
        batch, frames, _ = hidden_states.shape
        weights = hidden_states.new_zeros(batch, 0, frames, frames)
        if not family.projects_inside:
            return (hidden_states[..., :0], weights, None)[: family.returns]
        projection = getattr(self, family.output.rpartition(".")[2])
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
