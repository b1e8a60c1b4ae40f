"""Leaves with a layer what its heads give out on average, so that removal takes the rest alone.

Weights of attention sum to 1, so that a shift of a head's values by a constant shifts its output by
as much. Moved from the values' bias into that of the output projection, the mean output stays when
the head goes; until then the model computes what it did. Known as mean ablation where heads are
masked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import (
    AttentionSite,
    attention_sites,
    frozen,
    outputs_changed,
    run_encoder,
)


class RemovalSettings(BaseModel):
    """What a removed head leaves behind: nothing, or its mean output over the calibration data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    leave: Literal["nothing", "mean"] = "nothing"


def means_fault(model: PreTrainedModel) -> str | None:
    """Why a model cannot keep its heads' mean outputs, or None when it can."""
    sites = attention_sites(model)
    if all(getattr(part, "bias", None) is not None for s in sites for part in (s.value, s.output)):
        return None
    return (
        f"model type '{model.config.model_type}' has no bias in its attention to keep a mean in: "
        "leave it out"
    )


def mean_outputs(
    model: PreTrainedModel, clips: Iterable[Mapping[str, Tensor]]
) -> dict[int, Tensor]:
    """Each layer's mean outputs (heads, head size) over all frames of some clips, in float64."""
    sums: dict[int, Tensor] = {}
    frames = dict.fromkeys((site.layer for site in attention_sites(model)), 0)

    def add(site: AttentionSite, outputs: Tensor) -> Tensor:
        total = outputs.double().sum((0, 1))
        sums[site.layer] = sums[site.layer] + total if site.layer in sums else total
        frames[site.layer] += outputs.shape[0] * outputs.shape[1]
        return outputs

    with torch.no_grad(), frozen(model), outputs_changed(model, add):
        for clip in clips:
            run_encoder(model, clip)
    return {layer: total / frames[layer] for layer, total in sums.items()}


def move_means(model: PreTrainedModel, means: Mapping[int, Tensor]) -> None:
    """Move mean outputs into the biases of the output projections of a live model, for good.

    It computes what it did before; but heads now give out 0 on average, and that is what goes with
    them.
    """
    with torch.no_grad():
        for site in attention_sites(model):
            if site.layer not in means:
                continue
            mean, output = means[site.layer].flatten(), site.output
            assert isinstance(output, nn.Linear)
            output.bias.add_(output.weight.double() @ mean)
            site.value.bias.sub_(mean)
