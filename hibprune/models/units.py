"""The units of a pool that a live model still has, and whether it has the pools of a decoder."""

from __future__ import annotations

from typing import assert_never

from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.models.attention import heads_of
from hibprune.models.families import FAMILIES, has_decoder
from hibprune.models.feed_forward import neurons_of
from hibprune.models.front_end import channels_of
from hibprune.records.units import POOLS, Pool, Unit, is_of_decoder


def units_of(model: PreTrainedModel, pool: Pool) -> tuple[Unit, ...]:
    """The units that a budget calls so, by layer; none where the model has no such stack."""
    kind, stack = POOLS[pool]
    if is_of_decoder(stack) and not has_decoder(model):
        return ()
    match kind:
        case "head":
            return heads_of(model, [stack])
        case "neuron":
            return neurons_of(model, stack)
        case "channel":
            return channels_of(model)
        case _:
            assert_never(kind)


def require_decoder(model: PreTrainedModel, pool: Pool, place: str) -> None:
    """See that a model has a decoder for a pool of a decoder's units, which `place` wants to go.

    Raises:
        UserError: it has not; names the model types that have.
    """
    kind, stack = POOLS[pool]
    if is_of_decoder(stack) and not has_decoder(model):
        types = " and ".join(one.model_type for one in FAMILIES if one.decoder_attention)
        raise UserError(
            f"{place}: {type(model).__name__} has no decoder whose {kind}s can be removed: leave "
            f"it out (speech recognition with {types} has one)"
        )
