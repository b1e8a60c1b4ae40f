"""Physical removal of channels of the convolutional front end.

How many channels each layer keeps stands in the family's own attribute, `conv_dim`, from which
transformers builds the layers in their size, without hibprune. Which ones went stands beside it in
`config.pruned_channels`, for whoever prunes the model again: for each layer its number of channels
at first, and which of them are gone. Whisper's configuration has no such attribute: there its
convolutions are built whole, and made smaller after `import hibprune`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.reloading import (
    Rebuild,
    Remembered,
    contradiction,
    gone_places,
    remembered,
    require_layers,
)
from hibprune.models.families import family_of
from hibprune.models.front_end import (
    FrontEndPart,
    bare_parts,
    front_end_convolutions,
    front_end_parts,
    gone_channels,
    places_of,
)
from hibprune.models.layouts import Convolutions, Family, FrontEnd
from hibprune.records.units import Unit

FIELD = "pruned_channels"


def remove_channels(model: PreTrainedModel, channels: Iterable[Unit]) -> None:
    """Remove channels from a live model, for good; those already gone are passed over.

    Raises:
        IndexError: there is no such channel.
        ValueError: a layer would be left without channels.
    """
    parts = front_end_parts(model)
    gone: dict[int, set[int]] = {}
    for channel in channels:
        gone.setdefault(channel.layer, set()).add(channel.index)
    for number, indices in gone.items():
        _require_known(parts, number, indices)
    for part, reader in pairwise(parts):
        own = gone.get(part.layer, set())
        kept = [channel for channel in part.writes if channel.index not in own]
        if len(kept) < len(part.writes):
            _remove(part, reader, torch.tensor(places_of(kept, part.writes)))
            _remember(part.writer, gone_channels(part.writer) | own)
    if any(gone.values()):
        _tell_configuration(model, front_end_parts(model))


def _require_known(parts: Sequence[FrontEndPart], number: int, indices: set[int]) -> None:
    layers = len(parts) - 1
    if not 0 <= number < layers:
        raise IndexError(f"the front end has layers 0 to {layers - 1}, not {number}")
    count = len(parts[number].writes) + len(gone_channels(parts[number].writer))
    beyond = sorted(index for index in indices if not 0 <= index < count)
    if beyond:
        raise IndexError(f"a layer of the front end has channels 0 to {count - 1}, not {beyond}")
    if all(channel.index in indices for channel in parts[number].writes):
        raise ValueError(f"layer {number} of the front end has to keep a channel")


def _remove(part: FrontEndPart, reader: FrontEndPart, kept: Tensor) -> None:
    """Keep some of the channels between two parts, by their place."""
    writer, count = part.writer, len(kept)
    assert isinstance(writer, nn.Conv1d)
    _keep(writer, "weight", kept, 0)
    _keep(writer, "bias", kept, 0)
    writer.out_channels = count
    _narrow(part.norm, kept)
    _keep(reader.writer, "weight", kept, 1)
    if isinstance(reader.writer, nn.Conv1d):
        reader.writer.in_channels = count
    else:
        reader.writer.in_features = count
        _narrow(reader.norm, kept)


def _narrow(norm: nn.Module | None, kept: Tensor) -> None:
    if norm is None:
        return
    _keep(norm, "weight", kept, 0)
    _keep(norm, "bias", kept, 0)
    if isinstance(norm, nn.GroupNorm):
        # A group for each channel.
        norm.num_groups = norm.num_channels = len(kept)
    else:
        assert isinstance(norm, nn.LayerNorm)
        norm.normalized_shape = (len(kept),)


def _keep(module: nn.Module, name: str, kept: Tensor, dim: int) -> None:
    old = getattr(module, name)
    if old is not None:
        chosen = old.detach().index_select(dim, kept.to(old.device)).clone()
        setattr(module, name, nn.Parameter(chosen, old.requires_grad))


def _tell_configuration(model: PreTrainedModel, parts: Sequence[FrontEndPart]) -> None:
    layout = family_of(model.config.model_type).front_end
    assert layout is not None
    layers = parts[:-1]
    if isinstance(layout, FrontEnd):
        setattr(model.config, layout.channels_in_config, [len(part.writes) for part in layers])
    told = {}
    for part in layers:
        gone = gone_channels(part.writer)
        told[str(part.layer)] = remembered(len(part.writes) + len(gone), gone)
    setattr(model.config, FIELD, told)


def rebuilding_channels(family: Family) -> Rebuild:
    """How a base model of a family is told which of its channels are gone."""
    return partial(_rebuild, family)


def _rebuild(family: Family, base_model: Any, config: Any) -> None:
    """Note in each convolution which channels the configuration says are gone.

    Raises:
        ValueError: the configuration contradicts itself.
    """
    told = getattr(config, FIELD, None)
    if not told or family.front_end is None:
        return
    convolutions = front_end_convolutions(base_model, family.front_end)
    if isinstance(family.front_end, Convolutions):
        _build_smaller(convolutions, told)
        return
    require_layers(FIELD, told.keys(), len(convolutions))
    for number, convolution in enumerate(convolutions):
        if str(number) not in told:
            continue
        count, mask = told[str(number)]
        gone = gone_places(FIELD, "channels", count, mask)
        if convolution.out_channels != count - len(gone):
            raise contradiction(FIELD, "channels", count, len(gone), convolution.out_channels)
        _remember(convolution, gone)


def _build_smaller(convolutions: Sequence[nn.Conv1d], told: Mapping[str, Remembered]) -> None:
    """Take out of convolutions that were built whole what the configuration says is gone.

    Raises:
        ValueError: the configuration contradicts itself.
    """
    require_layers(FIELD, told.keys(), len(convolutions) - 1)
    parts = bare_parts(convolutions)
    for part, reader in pairwise(parts):
        count, mask = told.get(str(part.layer), (len(part.writes), "0"))
        gone = gone_places(FIELD, "channels", count, mask)
        if part.writer.out_channels != count or len(gone) == count:
            raise contradiction(FIELD, "channels", count, len(gone), len(part.writes))
        kept = [place for place in range(count) if place not in gone]
        if gone:
            _remove(part, reader, torch.tensor(kept))
            _remember(part.writer, gone)


def _remember(convolution: Any, gone: frozenset[int]) -> None:
    convolution.gone_channels = gone
