"""Physical removal of units, heads through Hugging Face's `prune_heads`; saving and reloading."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import assert_never

from transformers import PreTrainedModel

from hibprune.compression.channel_pruning import remove_channels
from hibprune.compression.decoder_head_pruning import remove_decoder_heads
from hibprune.compression.neuron_pruning import remove_neurons
from hibprune.records.units import Plan, Unit, heads_by_layer

NOTE = (
    "Parts were removed with hibprune. Before from_pretrained, `import hibprune` (with "
    "transformers 4.57): without it, loading stops at a missing '_prune_heads' or at weights of "
    "other shapes where layers differ. The ONNX files need neither."
)
"""For config.json, where whoever cannot load the model will look."""


def remove_units(model: PreTrainedModel, units: Iterable[Unit]) -> None:
    """Remove units of any kind from a live model, for good."""
    heads: list[Unit] = []
    in_decoder: list[Unit] = []
    neurons: list[Unit] = []
    channels: list[Unit] = []
    for unit in units:
        match unit.kind:
            case "head":
                (heads if unit.is_of("head") else in_decoder).append(unit)
            case "neuron":
                neurons.append(unit)
            case "channel":
                channels.append(unit)
            case _:
                assert_never(unit.kind)
    if heads:
        remove_heads(model, Plan(removed=tuple(heads), kept=()))
    if in_decoder:
        remove_decoder_heads(model, in_decoder)
    if neurons:
        remove_neurons(model, neurons)
    if channels:
        remove_channels(model, channels)
    if heads or in_decoder or neurons or channels:
        model.config._hibprune = NOTE


def remove_heads(model: PreTrainedModel, plan: Plan) -> None:
    """Remove a plan's heads from a live model, for good; `config.pruned_heads` then names them.

    Another entry of the configuration says what loading such a model takes.
    """
    with warnings.catch_warnings():
        # A layer that loses its last head has weights without elements.
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model.prune_heads(heads_by_layer(plan.removed))
    if plan.removed:
        model.config._hibprune = NOTE


def copy_without(model: PreTrainedModel, units: Iterable[Unit]) -> PreTrainedModel:
    """A copy of a model with some units removed for good."""
    smaller = copy.deepcopy(model)
    remove_units(smaller, units)
    return smaller


def save_model(model: PreTrainedModel, directory: Path) -> list[str]:
    """Save configuration and weights (safetensors, one file); returns the file names."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory, max_shard_size="100GB", safe_serialization=True)
    return ["config.json", "model.safetensors"]
