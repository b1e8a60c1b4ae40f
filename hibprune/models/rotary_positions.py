"""Rotary positions of conformers, worked out at every pass.

transformers keeps those of the last length. A graph that is exported behind a pass of the same
length would have them as constants and take no other length, and what a pass without gradients has
left is of no use to one with them.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

KEPT = "cached_rotary_positional_embedding"
"""What transformers calls those it keeps."""


def keep_no_positions(model: PreTrainedModel) -> None:
    """Let a model, and all copies of it, forget its rotary positions before each pass."""
    for module in model.modules():
        if hasattr(module, KEPT):
            setattr(module, KEPT, None)
            module.register_forward_pre_hook(_forget)


def _forget(module: nn.Module, _: Any) -> None:
    setattr(module, KEPT, None)
