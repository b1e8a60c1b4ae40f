"""Something else in the place of attention weights times values, in a live model.

The model is left as it was found, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import AttentionSite, attention_sites
from hibprune.models.families import family_of
from hibprune.models.layouts import Family

Mix = Callable[[int, Tensor], Tensor]
"""Takes a layer and its values (batch, heads, frames, head size); returns what takes the place of
attention weights times values, of the same shape."""


@contextmanager
def attention_replaced(model: PreTrainedModel, mix: Mix) -> Iterator[None]:
    """Let `mix` stand in for attention weights times values in every layer that has heads.

    Queries and keys are not computed at all.
    """
    family = family_of(model.config.model_type)
    with ExitStack() as stack:
        for site in attention_sites(model):
            if site.heads:
                # An attribute of the instance hides the method of the class until it is deleted.
                site.module.forward = _mixing_forward(site, family, mix)
                stack.callback(delattr, site.module, "forward")
        yield


def _mixing_forward(
    site: AttentionSite, family: Family, mix: Mix
) -> Callable[..., tuple[Tensor | None, ...]]:
    def forward(*inputs: Tensor, **named: object) -> tuple[Tensor | None, ...]:
        hidden_states = inputs[0] if inputs else named[family.attention_input]
        values = site.value(hidden_states).unflatten(-1, (-1, site.head_size)).transpose(1, 2)
        context = mix(site.layer, values).transpose(1, 2).flatten(-2)
        output = site.output(context) if family.encoder.projects_inside else context
        return (output, None, None)[: family.returns]

    return forward


@contextmanager
def layer_attention_replaced(
    model: PreTrainedModel, layer: int, mix: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Let `mix` stand in for attention weights times values in one layer of the encoder.

    All other layers attend as usual, and so does this one on the side, since it may hand on more
    than its output: WavLM's first layer makes the position bias of all.
    """
    site = attention_sites(model)[layer]
    values: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        values[:] = [output.unflatten(-1, (-1, site.head_size)).transpose(1, 2)]

    def replace(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (mix(values.pop()).transpose(1, 2).flatten(-2), *inputs[1:])

    with ExitStack() as stack:
        stack.callback(site.value.register_forward_hook(keep).remove)
        stack.callback(site.output.register_forward_pre_hook(replace).remove)
        yield
