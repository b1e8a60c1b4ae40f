"""The one seam into a live model: find heads, silence them, read or replace their attention.

Everything here works on the Hugging Face model as it is and leaves it as it was found, also after
an exception. Head indices are original ones; positions are places among the heads still there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.families import Family, family_of
from hibprune.records import Head

Mix = Callable[[int, Tensor], Tensor]
"""Takes a layer and its values (batch, heads, frames, head size); returns what takes the place of
attention weights times values, of the same shape."""


@dataclass(frozen=True)
class AttentionSite:
    """One layer's attention in a live model. `heads[i]` is the head at position i."""

    layer: int
    heads: tuple[Head, ...]
    head_size: int
    module: nn.Module
    value: nn.Linear
    output: nn.Module


def attention_sites(model: PreTrainedModel) -> tuple[AttentionSite, ...]:
    """The attention of every layer, first to last, with the heads still there."""
    family = family_of(model.config.model_type)
    sites = []
    for number, layer in enumerate(encoder_layers(model.base_model, family)):
        module = layer.get_submodule(family.attention)
        gone = set(model.config.pruned_heads.get(number, ()))
        heads = tuple(
            Head(number, index)
            for index in range(model.config.num_attention_heads)
            if index not in gone
        )
        sites.append(
            AttentionSite(
                layer=number,
                heads=heads,
                head_size=getattr(module, family.head_size),
                module=module,
                value=getattr(module, family.value),
                output=layer.get_submodule(family.output),
            )
        )
    return tuple(sites)


def encoder_layers(base_model: nn.Module, family: Family) -> list[nn.Module]:
    """The encoder layers of a base model, first to last."""
    return list(base_model.get_submodule(family.layers).children())


def heads_of(model: PreTrainedModel) -> tuple[Head, ...]:
    """All heads still there, sorted by (layer, index)."""
    return tuple(head for site in attention_sites(model) for head in site.heads)


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients for the weights; both restored afterwards."""
    training = {module: module.training for module in model.modules()}
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        model.eval()
        model.requires_grad_(False)
        yield
    finally:
        for module, mode in training.items():
            module.training = mode
        for weight in trainable:
            weight.requires_grad_(True)


@contextmanager
def silenced(model: PreTrainedModel, heads: Iterable[Head]) -> Iterator[None]:
    """Zero the output of some heads before the output projection: what removal would leave.

    Heads that are already gone are silent as they are.
    """
    silent = set(heads)
    with ExitStack() as stack:
        for site in attention_sites(model):
            positions = [i for i, head in enumerate(site.heads) if head in silent]
            if positions:
                handle = site.output.register_forward_pre_hook(
                    _zero_positions(positions, site.head_size)
                )
                stack.callback(handle.remove)
        yield


def _zero_positions(
    positions: list[int], head_size: int
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context = inputs[0].unflatten(-1, (-1, head_size)).clone()
        context[..., positions, :] = 0
        return (context.flatten(-2), *inputs[1:])

    return hook


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Compute attention in plain matrix products, the only way that also returns the weights."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before


@contextmanager
def attention_read(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Collect each layer's attention weights (batch, heads, frames, frames) of a forward pass.

    Call the model with `output_attentions=True` inside. Layers without heads stay out.
    """
    read: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, object, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, _inputs: object, outputs: tuple[Tensor, ...]) -> None:
            read[layer] = outputs[1].detach()

        return hook

    with ExitStack() as stack:
        stack.enter_context(eager_attention(model))
        for site in attention_sites(model):
            if site.heads:
                handle = site.module.register_forward_hook(keep(site.layer))
                stack.callback(handle.remove)
        yield read


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
    def forward(hidden_states: Tensor, *_: object, **__: object) -> tuple[Tensor | None, ...]:
        values = site.value(hidden_states).unflatten(-1, (-1, site.head_size)).transpose(1, 2)
        context = mix(site.layer, values).transpose(1, 2).flatten(-2)
        output = site.output(context) if family.projects_inside else context
        return (output, None, None)[: family.returns]

    return forward


Prefix = Mapping[str, tuple[Tensor, ...]]
"""Outputs of the modules that no attention reaches, by path; a module may return several."""


@contextmanager
def prefix_recorded(model: PreTrainedModel) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Collect, in a forward pass, what the modules in front of the first attention give out."""
    family = family_of(model.config.model_type)
    recorded: dict[str, tuple[Tensor, ...]] = {}

    def keep(path: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, _inputs: object, outputs: Tensor | tuple[Tensor, ...]) -> None:
            parts = outputs if isinstance(outputs, tuple) else (outputs,)
            recorded[path] = tuple(part.detach().clone() for part in parts)

        return hook

    with ExitStack() as stack:
        for path, _ in family.prefix:
            module = model.base_model.get_submodule(path)
            stack.callback(module.register_forward_hook(keep(path)).remove)
        yield recorded


@contextmanager
def prefix_replayed(model: PreTrainedModel, prefix: Prefix) -> Iterator[None]:
    """Give out recorded values in the place of the modules in front of the first attention."""
    family = family_of(model.config.model_type)
    with ExitStack() as stack:
        for path, _ in family.prefix:
            module = model.base_model.get_submodule(path)
            module.forward = _replaying_forward(prefix[path])
            stack.callback(delattr, module, "forward")
        yield


def _replaying_forward(parts: tuple[Tensor, ...]) -> Callable[..., object]:
    def forward(*_: object, **__: object) -> object:
        # Copies, since the encoders zero padded frames in place.
        copies = tuple(part.clone() for part in parts)
        return copies[0] if len(copies) == 1 else copies

    return forward
