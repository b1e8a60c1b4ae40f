"""Projections of an encoder as two matrices, remembered so that the model reloads.

`config.projection_ranks` names, for each layer, the projections that are two matrices, by their
path within it, and their ranks. Importing hibprune teaches the models to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from hibprune.compression.reloading import Rebuild, require_layers
from hibprune.models.attention import stack_layers
from hibprune.models.layerwise import encoder_layers
from hibprune.models.layouts import Family
from hibprune.models.low_rank import ProjectionPlace, ranks_by_layer, ranks_within, thinner
from hibprune.records.units import Plan

FIELD = "projection_ranks"


def take_shape(model: PreTrainedModel, ranks: Mapping[ProjectionPlace, int]) -> None:
    """Give a live model's projections the shapes that they will have, and no particular values.

    The configuration remembers them, so that whatever weights it is given it can be saved.
    """
    layers = encoder_layers(model)
    for (number, path), rank in ranks.items():
        thinner(layers[number], path, rank)
    if ranks:
        tell_configuration(model)


def wanted_ranks(model: PreTrainedModel, plan: Plan, share: float) -> dict[ProjectionPlace, int]:
    """Which projections of a model without a plan's units become two matrices, and their ranks.

    Those that the plan names, or else all of which a `share` of the weights can go.
    """
    if not plan.ranks:
        return ranks_within(model, share) if share else {}
    return by_place(plan.ranks)


def layered(ranks: Mapping[ProjectionPlace, int]) -> dict[int, dict[str, int]]:
    """Ranks by layer and then by path, as plans have them."""
    found: dict[int, dict[str, int]] = {}
    for (layer, path), rank in sorted(ranks.items()):
        found.setdefault(layer, {})[path] = rank
    return found


def by_place(ranks: Mapping[int, Mapping[str, int]]) -> dict[ProjectionPlace, int]:
    """Ranks as plans have them, by layer and path together."""
    return {(layer, path): rank for layer, own in ranks.items() for path, rank in own.items()}


def tell_configuration(model: PreTrainedModel) -> None:
    """Let the configuration remember which projections are two matrices."""
    setattr(model.config, FIELD, ranks_by_layer(model))


def rebuilding_ranks(family: Family) -> Rebuild:
    """How a base model of a family makes two matrices of what the configuration names."""
    return partial(_rebuild, family)


def _rebuild(family: Family, base_model: Any, config: Any) -> None:
    """Make two matrices, into which the weights of a checkpoint are then copied.

    Raises:
        ValueError: the configuration contradicts the model.
    """
    told: Mapping[str, Mapping[str, int]] | None = getattr(config, FIELD, None)
    if not told:
        return
    layers = stack_layers(base_model, family.encoder)
    require_layers(FIELD, told.keys(), len(layers))
    for number, ranks in told.items():
        for path, rank in ranks.items():
            if path not in family.projections:
                raise ValueError(
                    f"{FIELD} speaks of '{path[:60]}', and the projections of a layer are "
                    f"{', '.join(family.projections)}"
                )
            thinner(layers[int(number)], path, rank)
