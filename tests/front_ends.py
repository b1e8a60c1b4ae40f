"""Tiny models with a convolutional front end, in all its forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from tiny_models import RAW_AUDIO, TinyModel
from transformers import PreTrainedModel

WIDTHS = (12, 20, 16)
"""Channels of each layer."""


def _variant(tiny: TinyModel, name: str = "", **settings: Any) -> TinyModel:
    own = {**tiny.settings, "conv_dim": WIDTHS, **settings}
    return replace(tiny, name=name or tiny.name, settings=own)


_BY_NAME = {tiny.name: tiny for tiny in RAW_AUDIO}
FRONT_ENDS = (
    *(_variant(tiny) for tiny in RAW_AUDIO),
    _variant(_BY_NAME["wav2vec2"], "wav2vec2-bias", conv_bias=True),
    _variant(_BY_NAME["wav2vec2-stable"], "wav2vec2-stable-bias", conv_bias=True),
    _variant(_BY_NAME["hubert"], "hubert-bare", conv_bias=True, feat_proj_layer_norm=False),
)
"""Every family, with group norm or layer norm, with and without biases and a norm at the end."""
GROUP_NORM = tuple(
    one for one in FRONT_ENDS if getattr(one.config(), "feat_extract_norm", "layer") == "group"
)


def front_end(name: str) -> TinyModel:
    """One of them."""
    return next(one for one in FRONT_ENDS if one.name == name)


def built(tiny: TinyModel) -> PreTrainedModel:
    """A model whose norms and biases in the front end are all different, so that a mix-up shows."""
    model = tiny.build()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.base_model.named_parameters():
            if name.startswith("feature_") and weight.dim() == 1:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
            elif name.startswith("feature_projection"):
                weight.mul_(8)
    return model
