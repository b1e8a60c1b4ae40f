"""Physical removal of neurons, remembered by the configuration so that a pruned model reloads.

Where all feed-forwards of a stack keep the same number, the family's own attribute says so, if the
stack has one, and transformers rebuilds the layers by itself. Which neurons went, and how many
where layers differ, stands in `config.pruned_neurons`, of a decoder in
`config.pruned_decoder_neurons`, which importing hibprune teaches the models to read: for each
feed-forward of each layer its number of neurons at first, and which of them are gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import prune_linear_layer

from hibprune.compression.reloading import (
    Rebuild,
    Remembered,
    contradiction,
    gone_places,
    remembered,
    require_layers,
)
from hibprune.models.attention import has_stack, stack_layers
from hibprune.models.feed_forward import gone_neurons, neuron_stacks
from hibprune.models.layouts import Family, FeedForward, NeuronStack
from hibprune.models.low_rank import LowRankLinear, Projection
from hibprune.records.units import Unit


def remove_neurons(model: PreTrainedModel, neurons: Iterable[Unit]) -> None:
    """Remove neurons from a live model, for good; those already gone are passed over.

    Raises:
        IndexError: a layer has no such neuron, or the model no such stack.
    """
    wanted: dict[str, dict[int, set[int]]] = {}
    for neuron in neurons:
        wanted.setdefault(neuron.stack, {}).setdefault(neuron.layer, set()).add(neuron.index)
    stacks = {stack.name: stack for stack in neuron_stacks(model)}
    for name, by_layer in wanted.items():
        if name not in stacks:
            raise IndexError(f"the model has neurons of {' and '.join(stacks)}, not of {name}")
        _remove_of_stack(model, stacks[name], by_layer)


def _remove_of_stack(
    model: PreTrainedModel, stack: NeuronStack, wanted: Mapping[int, set[int]]
) -> None:
    layers = stack_layers(model.base_model, stack)
    for number, indices in wanted.items():
        if not 0 <= number < len(layers):
            raise IndexError(f"the model has layers 0 to {len(layers) - 1}, not {number}")
        own = _by_part(layers[number], stack, indices)
        for layout, places in zip(stack.feed_forwards, own, strict=True):
            _remove(layers[number], layout, places)
    _tell_configuration(model, stack, layers)


def _by_part(layer: nn.Module, stack: NeuronStack, indices: set[int]) -> list[set[int]]:
    """Indices that are counted over a layer, as places within each of its feed-forwards."""
    parts: list[set[int]] = []
    offset = 0
    for layout in stack.feed_forwards:
        count = _left(layer, layout) + len(gone_neurons(layer.get_submodule(layout.first)))
        parts.append({one - offset for one in indices if offset <= one < offset + count})
        offset += count
    beyond = sorted(one for one in indices if not 0 <= one < offset)
    if beyond:
        raise IndexError(f"a layer has neurons 0 to {offset - 1}, not {beyond}")
    return parts


def _left(layer: nn.Module, layout: FeedForward) -> int:
    """How many neurons a feed-forward has now: columns of its second matrix."""
    second: Any = layer.get_submodule(layout.second)
    return int(second.in_features)


def _remove(layer: nn.Module, layout: FeedForward, places: set[int]) -> None:
    first: Any = layer.get_submodule(layout.first)
    gone = gone_neurons(first)
    count = _left(layer, layout) + len(gone)
    left = [place for place in range(count) if place not in gone]
    kept = [position for position, place in enumerate(left) if place not in places]
    if len(kept) == len(left):
        return
    index = torch.tensor(kept, dtype=torch.long, device=first.weight.device)
    rows = torch.cat([index + block * len(left) for block in range(layout.rows)])
    _replace(layer, layout.first, rows, 0)
    _replace(layer, layout.second, index, 1)
    layer.get_submodule(layout.first).gone_neurons = gone | places  # type: ignore[assignment]


def _replace(layer: nn.Module, path: str, kept: torch.Tensor, dim: int) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = layer.get_submodule(parent_path)
    linear: Projection = getattr(parent, name)
    if isinstance(linear, LowRankLinear):
        setattr(parent, name, linear.narrowed(kept, dim))
        return
    with warnings.catch_warnings():
        # A layer that loses its last neuron has weights without elements.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        pruned = prune_linear_layer(linear, kept, dim).to(linear.weight.dtype)
    for weight_name, weight in pruned.named_parameters():
        weight.requires_grad_(linear.get_parameter(weight_name).requires_grad)
    setattr(parent, name, pruned.train(linear.training))


def _tell_configuration(
    model: PreTrainedModel, stack: NeuronStack, layers: Sequence[nn.Module]
) -> None:
    counts: set[int] = set()
    told: dict[str, list[Remembered]] = {}
    for number, layer in enumerate(layers):
        told[str(number)] = []
        for layout in stack.feed_forwards:
            left, gone = _left(layer, layout), gone_neurons(layer.get_submodule(layout.first))
            counts.add(left)
            told[str(number)].append(remembered(left + len(gone), gone))
    setattr(model.config, stack.gone_in_config, told)
    if stack.count_in_config is not None:
        # Where layers differ, and where none is left, they are built whole and made smaller.
        whole = told["0"][0][0]
        same = counts.pop() if len(counts) == 1 else 0
        setattr(model.config, stack.count_in_config, same or whole)


def rebuilding_neurons(family: Family) -> Rebuild:
    """How a base model of a family takes out the neurons that are gone."""
    return partial(_rebuild, family)


def _rebuild(family: Family, base_model: Any, config: Any) -> None:
    """Take out what the configuration says is gone.

    Raises:
        ValueError: the configuration contradicts itself or the model.
    """
    for stack in family.neuron_stacks:
        told = getattr(config, stack.gone_in_config, None)
        if not told or not has_stack(base_model, stack):
            continue
        layers = stack_layers(base_model, stack)
        require_layers(stack.gone_in_config, told.keys(), len(layers))
        for number, layer in enumerate(layers):
            if str(number) in told:
                _build_smaller(layer, stack, told[str(number)])


def _build_smaller(layer: nn.Module, stack: NeuronStack, told: Sequence[Remembered]) -> None:
    """Take out of a layer what its configuration says is gone.

    Raises:
        ValueError: the layer has neither the number of neurons it had at first nor what is left, or
            neurons are gone that it never had, or it has another number of feed-forwards.
    """
    field = stack.gone_in_config
    if len(told) != len(stack.feed_forwards):
        raise ValueError(
            f"{field} speaks of {len(told)} feed-forwards in a layer that has "
            f"{len(stack.feed_forwards)}"
        )
    for layout, (count, mask) in zip(stack.feed_forwards, told, strict=True):
        gone, left = gone_places(field, "neurons", count, mask), _left(layer, layout)
        if left == count:
            _remove(layer, layout, set(gone))
        elif left == count - len(gone):
            layer.get_submodule(layout.first).gone_neurons = gone  # type: ignore[assignment]
        else:
            raise contradiction(field, "neurons", count, len(gone), left)
