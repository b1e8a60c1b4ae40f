"""The units of a kind that a live model still has."""

from __future__ import annotations

from transformers import PreTrainedModel

from hibprune.models.attention import heads_of
from hibprune.models.feed_forward import neurons_of
from hibprune.models.front_end import channels_of
from hibprune.records.units import Kind, Unit


def units_of(model: PreTrainedModel, kind: Kind) -> tuple[Unit, ...]:
    """Those of the encoder, or of its front end, that can be removed, by layer."""
    if kind == "head":
        return heads_of(model)
    return neurons_of(model) if kind == "neuron" else channels_of(model)
