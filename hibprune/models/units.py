"""The units of a pool that a live model still has."""

from __future__ import annotations

from transformers import PreTrainedModel

from hibprune.models.attention import heads_of
from hibprune.models.feed_forward import neurons_of
from hibprune.models.front_end import channels_of
from hibprune.records.units import POOLS, Pool, Unit


def units_of(model: PreTrainedModel, pool: Pool) -> tuple[Unit, ...]:
    """The units that a budget calls so, by layer; none where the model has no such stack."""
    kind, stack = POOLS[pool]
    if kind == "head":
        return heads_of(model)
    return channels_of(model) if kind == "channel" else neurons_of(model, stack)
