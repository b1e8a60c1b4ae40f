"""Physical removal of neurons, remembered by the configuration so that a pruned model reloads.

Where all feed-forwards of the encoder keep the same number, the family's own attribute says so and
transformers rebuilds the layers by itself. Which neurons went, and how many where layers differ,
stands in `config.pruned_neurons`, which importing hibprune teaches the models to read: for each
feed-forward of each layer its number of neurons at first, and which of them are gone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import prune_linear_layer

from hibprune.compression.rebuilding import (
    Rebuild,
    Remembered,
    contradiction,
    gone_places,
    remembered,
    require_layers,
)
from hibprune.models.attention import stack_layers
from hibprune.models.families import family_of
from hibprune.models.feed_forward import gone_neurons
from hibprune.models.layouts import Family
from hibprune.records.units import Unit

FIELD = "pruned_neurons"


def remove_neurons(model: PreTrainedModel, neurons: Iterable[Unit]) -> None:
    """Remove neurons from a live model, for good; those already gone are passed over.

    Raises:
        IndexError: a layer has no such neuron.
    """
    family = family_of(model.config.model_type)
    layers = stack_layers(model.base_model, family.encoder)
    wanted: dict[int, set[int]] = {}
    for neuron in neurons:
        wanted.setdefault(neuron.layer, set()).add(neuron.index)
    for number, indices in wanted.items():
        if not 0 <= number < len(layers):
            raise IndexError(f"the model has layers 0 to {len(layers) - 1}, not {number}")
        own = _by_part(layers[number], family, indices)
        for layout, places in zip(family.feed_forwards, own, strict=True):
            _remove(layers[number], layout.first, layout.second, places)
    if any(wanted.values()):
        _tell_configuration(model, family, layers)


def _by_part(layer: nn.Module, family: Family, indices: set[int]) -> list[set[int]]:
    """Indices that are counted over a layer, as places within each of its feed-forwards."""
    parts: list[set[int]] = []
    offset = 0
    for layout in family.feed_forwards:
        first: Any = layer.get_submodule(layout.first)
        count = first.out_features + len(gone_neurons(first))
        parts.append({one - offset for one in indices if offset <= one < offset + count})
        offset += count
    beyond = sorted(one for one in indices if not 0 <= one < offset)
    if beyond:
        raise IndexError(f"a layer has neurons 0 to {offset - 1}, not {beyond}")
    return parts


def _remove(layer: nn.Module, first_path: str, second_path: str, places: set[int]) -> None:
    first: Any = layer.get_submodule(first_path)
    gone = gone_neurons(first)
    count = first.out_features + len(gone)
    left = [place for place in range(count) if place not in gone]
    kept = [position for position, place in enumerate(left) if place not in places]
    if len(kept) == len(left):
        return
    index = torch.tensor(kept, dtype=torch.long, device=first.weight.device)
    _replace(layer, first_path, index, 0)
    _replace(layer, second_path, index, 1)
    layer.get_submodule(first_path).gone_neurons = gone | places  # type: ignore[assignment]


def _replace(layer: nn.Module, path: str, kept: torch.Tensor, dim: int) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = layer.get_submodule(parent_path)
    linear: nn.Linear = getattr(parent, name)
    with warnings.catch_warnings():
        # A layer that loses its last neuron has weights without elements.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        pruned = prune_linear_layer(linear, kept, dim).to(linear.weight.dtype)
    for weight_name, weight in pruned.named_parameters():
        weight.requires_grad_(linear.get_parameter(weight_name).requires_grad)
    setattr(parent, name, pruned.train(linear.training))


def _tell_configuration(
    model: PreTrainedModel, family: Family, layers: Sequence[nn.Module]
) -> None:
    counts: set[int] = set()
    told: dict[str, list[Remembered]] = {}
    for number, layer in enumerate(layers):
        told[str(number)] = []
        for layout in family.feed_forwards:
            first: Any = layer.get_submodule(layout.first)
            gone = gone_neurons(first)
            counts.add(first.out_features)
            told[str(number)].append(remembered(first.out_features + len(gone), gone))
    setattr(model.config, FIELD, told)
    if family.neurons_in_config is not None:
        # Where layers differ, and where none is left, they are built whole and made smaller.
        whole = told["0"][0][0]
        same = counts.pop() if len(counts) == 1 else 0
        setattr(model.config, family.neurons_in_config, same or whole)


def rebuilding_neurons(family: Family) -> Rebuild:
    """How a base model of a family takes out the neurons that are gone."""
    return partial(_rebuild, family)


def _rebuild(family: Family, base_model: Any, config: Any) -> None:
    """Take out what the configuration says is gone.

    Raises:
        ValueError: the configuration contradicts itself or the model.
    """
    told = getattr(config, FIELD, None)
    if not told:
        return
    layers = stack_layers(base_model, family.encoder)
    require_layers(FIELD, told.keys(), len(layers))
    for number, layer in enumerate(layers):
        if str(number) in told:
            _build_smaller(layer, family, told[str(number)])


def _build_smaller(layer: nn.Module, family: Family, told: Sequence[Remembered]) -> None:
    """Take out of a layer what its configuration says is gone.

    Raises:
        ValueError: the layer has neither the number of neurons it had at first nor what is left, or
            neurons are gone that it never had, or it has another number of feed-forwards.
    """
    if len(told) != len(family.feed_forwards):
        raise ValueError(
            f"{FIELD} speaks of {len(told)} feed-forwards in a layer that has "
            f"{len(family.feed_forwards)}"
        )
    for layout, (count, mask) in zip(family.feed_forwards, told, strict=True):
        first: Any = layer.get_submodule(layout.first)
        gone = gone_places(FIELD, "neurons", count, mask)
        if first.out_features == count:
            _remove(layer, layout.first, layout.second, set(gone))
        elif first.out_features == count - len(gone):
            first.gone_neurons = gone
        else:
            raise contradiction(FIELD, "neurons", count, len(gone), first.out_features)
