"""Physical removal of heads from the attention of one layer, of whatever stack."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import find_pruneable_heads_and_indices, prune_linear_layer

from hibprune.models.attention import gone_heads, head_count
from hibprune.models.layouts import Stack
from hibprune.models.low_rank import LowRankLinear, Projection


def remove_heads_of_layer(layer: nn.Module, heads: set[int], stack: Stack) -> None:
    """Remove heads from a layer's attention, for good; those already gone are passed over."""
    attention: Any = layer.get_submodule(stack.attention)
    count, size = head_count(attention, stack), getattr(attention, stack.head_size)
    # Rows can be told from one another also where weights have shapes alone.
    with torch.device("cpu"):
        new, rows = find_pruneable_heads_and_indices(heads, count, size, set(gone_heads(attention)))
    if not new:
        return
    with warnings.catch_warnings():
        # A layer that loses its last head has weights without elements.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        for name in (stack.query, stack.key, stack.value, *stack.rows_per_head):
            if hasattr(attention, name):
                setattr(attention, name, _pruned_linear(getattr(attention, name), rows))
        path, _, name = stack.output.rpartition(".")
        parent = layer.get_submodule(path)
        setattr(parent, name, _pruned_linear(getattr(parent, name), rows, dim=1))

    positions = rows[::size] // size
    for name, dim in stack.parameters_per_head:
        if hasattr(attention, name):
            weight = getattr(attention, name)
            kept = weight.detach().index_select(dim, positions.to(weight.device)).clone()
            setattr(attention, name, nn.Parameter(kept, weight.requires_grad))
    left = count - len(new)
    if stack.head_count is not None:
        setattr(attention, stack.head_count, left)
    if stack.head_count_in_config is not None:
        shared = getattr(attention.config, "shared", attention.config)
        attention.config = OwnConfiguration(shared, {stack.head_count_in_config: left})
    if stack.width is not None:
        setattr(attention, stack.width, left * size)
    attention.pruned_heads = set(gone_heads(attention) | new)


class OwnConfiguration:
    """A model's configuration as one attention module sees it, with values of its own.

    A view, not a copy: what is changed later, such as the attention implementation, reaches it, and
    what is set on it is set for the whole model, as optimum's exporter does with `use_cache`.
    """

    shared: Any
    own: Mapping[str, Any]

    def __init__(self, shared: Any, own: Mapping[str, Any]) -> None:
        vars(self).update(shared=shared, own=own)

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling look for special methods while there are no attributes yet.
        if name.startswith("__") or name in ("shared", "own"):
            raise AttributeError(name)
        return self.own[name] if name in self.own else getattr(self.shared, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("shared", "own", *self.own):
            raise AttributeError(f"{name} belongs to one layer: it follows from the heads removed")
        setattr(self.shared, name, value)


def _pruned_linear(linear: Projection, kept: Tensor, dim: int = 0) -> Projection:
    """transformers' own makes it float32, trainable and in training mode, whatever it was."""
    if isinstance(linear, LowRankLinear):
        return linear.narrowed(kept, dim)
    pruned: nn.Linear = prune_linear_layer(linear, kept, dim).to(linear.weight.dtype)
    for name, weight in pruned.named_parameters():
        weight.requires_grad_(linear.get_parameter(name).requires_grad)
    return pruned.train(linear.training)
