"""Which weights of a pruned model recovery moves."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.families import has_decoder
from hibprune.models.front_end import front_end_parts
from hibprune.models.sublayers import sublayers
from hibprune.records.recovery import Trained
from hibprune.records.repair import Repair
from hibprune.records.units import DECODER, ENCODER

NORMS = ("LayerNorm", "GroupNorm", "BatchNorm", "RMSNorm")
"""In the names of classes: families have norms of their own, too."""


def trained_weights(
    model: PreTrainedModel, trained: Trained, repair: Repair | None
) -> dict[str, Tensor]:
    """The weights that move, by name; those that were `repaired` are the ones that `repair` names.

    Weights without elements, of layers that have lost all, are left out.
    """
    if trained == "norms+biases":
        chosen = _norms_and_biases(model)
    elif trained == "repaired":
        chosen = {id(weight) for module in _fitted(model, repair) for weight in module.parameters()}
    else:
        chosen = {id(weight) for weight in model.parameters()}
    return {
        name: weight
        for name, weight in model.named_parameters()
        if id(weight) in chosen and weight.is_floating_point() and weight.numel()
    }


def _norms_and_biases(model: nn.Module) -> set[int]:
    chosen: set[int] = set()
    for module in model.modules():
        is_norm = any(norm in type(module).__name__ for norm in NORMS)
        for name, weight in module.named_parameters(recurse=False):
            if is_norm or name == "bias":
                chosen.add(id(weight))
    return chosen


def _fitted(model: PreTrainedModel, repair: Repair | None) -> Iterable[nn.Module]:
    """What writes in the sublayers that were repaired, and the convolutions."""
    named = {(one.layer, one.name) for one in repair.sublayers} if repair is not None else set()
    stacks = (ENCODER, DECODER) if has_decoder(model) else (ENCODER,)
    for stack in stacks:
        for layer in sublayers(model, stack):
            yield from (one.writer for one in layer if (one.layer, one.name) in named)
    yield from (part.writer for part in front_end_parts(model) if (part.layer, part.name) in named)
