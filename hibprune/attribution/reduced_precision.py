"""Reduced precision for a frozen model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from hibprune.attribution.hib_settings import Precision


@contextmanager
def products_in(model: PreTrainedModel, precision: Precision) -> Iterator[None]:
    """Hold the weights of products in a precision; the model's own are back afterwards.

    Within `torch.autocast`, which keeps what it casts for trainable weights alone: those of a
    frozen model it would cast anew in every pass, a tenth of the time of a step.
    """
    if precision == "float32":
        yield
        return
    own = [
        (module, name, parameter)
        for module in model.modules()
        if isinstance(module, nn.Linear)
        for name, parameter in module.named_parameters(recurse=False)
    ]
    try:
        for module, name, parameter in own:
            setattr(module, name, nn.Parameter(parameter.bfloat16(), requires_grad=False))
        yield
    finally:
        for module, name, parameter in own:
            setattr(module, name, parameter)
