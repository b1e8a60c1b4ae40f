"""The one seam into a live model: find heads, silence them, read their attention.

Everything here works on the Hugging Face model as it is and leaves it as it was found, also after
an exception. Head indices are original ones; positions are places among the heads still there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.models.families import family_of, has_decoder
from hibprune.models.layouts import NeuronStack, Stack
from hibprune.records.units import ENCODER, Head


@dataclass(frozen=True)
class AttentionSite:
    """One layer's attention in a live model. `heads[i]` is the head at position i."""

    stack: str
    layer: int
    heads: tuple[Head, ...]
    head_size: int
    module: nn.Module
    value: nn.Linear
    output: nn.Module


Change = Callable[[AttentionSite, Tensor], Tensor]
"""Takes a layer's attention and what its heads give out (batch, frames, heads, head size); returns
what takes the place of that, of the same shape."""


def attention_sites(
    model: PreTrainedModel, stacks: Iterable[str] = (ENCODER,)
) -> tuple[AttentionSite, ...]:
    """The attention of every layer of some stacks, first to last, with the heads still there.

    Raises:
        UserError: the model has no such stack, or its heads share keys and values.
    """
    family = family_of(model.config.model_type)
    sites = []
    for name in stacks:
        stack = family.stack(name)
        if name != ENCODER and not has_decoder(model):
            raise UserError(
                f"{type(model).__name__} has no decoder, and no attention heads '{name}': "
                f"use {ENCODER}"
            )
        for number, layer in enumerate(stack_layers(model.base_model, stack)):
            module = layer.get_submodule(stack.attention)
            gone = gone_heads(module)
            count = head_count(module, stack) + len(gone)
            sites.append(
                AttentionSite(
                    stack=name,
                    layer=number,
                    heads=tuple(Head(number, i, name) for i in range(count) if i not in gone),
                    head_size=getattr(module, stack.head_size),
                    module=module,
                    value=getattr(module, stack.value),
                    output=layer.get_submodule(stack.output),
                )
            )
    return tuple(sites)


def stack_layers(base_model: nn.Module, stack: Stack | NeuronStack) -> list[nn.Module]:
    """The layers of a stack, first to last."""
    return list(base_model.get_submodule(stack.layers).children())


def has_stack(base_model: nn.Module, stack: Stack | NeuronStack) -> bool:
    """Whether a stack is there: a classifier may have taken the place of a decoder."""
    return hasattr(base_model, stack.layers.partition(".")[0])


def head_count(attention: nn.Module, stack: Stack) -> int:
    """How many heads an attention module has now.

    Raises:
        UserError: several heads share a key and a value, so that none has its own to remove.
    """
    rows = [getattr(attention, name).out_features for name in (stack.query, stack.value)]
    if rows[0] != rows[1]:
        raise UserError(
            f"{type(attention).__name__} has grouped queries ({rows[0]} rows of queries over "
            f"{rows[1]} of values), which hibprune cannot prune: use a model without"
        )
    return int(rows[1] // getattr(attention, stack.head_size))


def gone_heads(attention: nn.Module) -> frozenset[int]:
    """The original indices of the heads that were removed from an attention module."""
    return frozenset(getattr(attention, "pruned_heads", ()))


def heads_of(model: PreTrainedModel, stacks: Iterable[str] = (ENCODER,)) -> tuple[Head, ...]:
    """All heads still there, stack by stack, each sorted by (layer, index)."""
    return tuple(head for site in attention_sites(model, stacks) for head in site.heads)


def head_places(
    model: PreTrainedModel, stacks: Iterable[str] = (ENCODER,)
) -> dict[tuple[str, int], slice]:
    """Where the heads of each layer of some stacks stand in `heads_of(model, stacks)`."""
    places: dict[tuple[str, int], slice] = {}
    start = 0
    for site in attention_sites(model, stacks):
        places[site.stack, site.layer] = slice(start, start + len(site.heads))
        start += len(site.heads)
    return places


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
def outputs_changed(
    model: PreTrainedModel, change: Change, stacks: Iterable[str] = (ENCODER,)
) -> Iterator[None]:
    """Let `change` work on what every head gives out, in front of the output projection."""
    with ExitStack() as stack:
        for site in attention_sites(model, stacks):
            if site.heads:
                handle = site.output.register_forward_pre_hook(_changing(site, change))
                stack.callback(handle.remove)
        yield


def _changing(
    site: AttentionSite, change: Change
) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        outputs = inputs[0].unflatten(-1, (-1, site.head_size))
        return (change(site, outputs).flatten(-2), *inputs[1:])

    return hook


@contextmanager
def silenced(model: PreTrainedModel, heads: Iterable[Head]) -> Iterator[None]:
    """Zero the output of some heads before the output projection: what removal would leave.

    Heads that are already gone are silent as they are.
    """
    silent = set(heads)

    def change(site: AttentionSite, outputs: Tensor) -> Tensor:
        positions = [i for i, head in enumerate(site.heads) if head in silent]
        if not positions:
            return outputs
        return outputs.index_fill(2, torch.tensor(positions, device=outputs.device), 0)

    stacks = dict.fromkeys(head.stack for head in sorted(silent))
    with outputs_changed(model, change, stacks):
        yield


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Compute attention in plain matrix products, the only way that also returns the weights.

    Families that have a class for each implementation are left alone: theirs does so by itself
    when called with `output_attentions=True`, and would fail under another's masks.
    """
    before = model.config._attn_implementation
    try:
        if len(family_of(model.config.model_type).attention_classes) == 1:
            model.config._attn_implementation = "eager"
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
        stack.enter_context(_without_left_forwards(model))
        stack.enter_context(eager_attention(model))
        for site in attention_sites(model):
            if site.heads:
                handle = site.module.register_forward_hook(keep(site.layer))
                stack.callback(handle.remove)
        yield read


@contextmanager
def _without_left_forwards(model: PreTrainedModel) -> Iterator[None]:
    """Take off the `forward` that transformers leaves on modules whose outputs it has recorded."""
    own = {module for module in model.modules() if "forward" in vars(module)}
    try:
        yield
    finally:
        for module in model.modules():
            if module not in own:
                vars(module).pop("forward", None)


@contextmanager
def positions_cut(model: PreTrainedModel, frames: int) -> Iterator[None]:
    """Let an encoder that insists on filling all its positions run on the first `frames` of them.

    For calibration: the model was trained on padded clips. Other encoders are left alone.

    Raises:
        UserError: it has fewer positions, or none at all are asked for.
    """
    family = family_of(model.config.model_type)
    if family.positions is None:
        yield
        return
    config = model.config
    table = model.base_model.get_submodule(family.positions)
    assert isinstance(table, nn.Embedding)
    before = config.max_source_positions, table.num_embeddings
    if not 0 < frames <= before[0]:
        raise UserError(
            f"a clip of {frames} encoder frames where the model takes 1 to {before[0]}: "
            "use shorter clips (max_seconds)"
        )
    try:
        config.max_source_positions = table.num_embeddings = frames
        yield
    finally:
        config.max_source_positions, table.num_embeddings = before


@contextmanager
def positions_fitted(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Iterator[None]:
    """Cut positions to what the main input fills, in an encoder that insists on it."""
    with positions_cut(model, frame_count(model, input_length(model, inputs))):
        yield


def run_encoder(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], output_attentions: bool = False
) -> None:
    """Pass inputs through the encoder alone, on the frames they have; for what hooks catch."""
    encoder = model.get_encoder() if has_decoder(model) else model
    device = next(model.parameters()).device
    own = {
        name: value.to(device) for name, value in inputs.items() if not name.startswith("decoder_")
    }
    with positions_fitted(model, own):
        encoder(**own, output_attentions=output_attentions)


@torch.no_grad()
def encoder_output(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a decoder is given to hear (batch, frames, width), of a model that has one."""
    device = next(model.parameters()).device
    own = {name: value.to(device) for name, value in inputs.items()}
    with positions_fitted(model, own):
        output: Tensor = model.get_encoder()(**own)[0]
    return output


def input_length(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> int:
    """Samples, spectrogram frames or tokens of a model's main input."""
    axis = family_of(model.config.model_type).length_axis
    return int(inputs[model.main_input_name].shape[axis])


def frame_count(model: PreTrainedModel, length: int) -> int:
    """Frames that the encoder's attention sees of an input of some length."""
    if hasattr(model, "_get_feat_extract_output_lengths"):
        return _front_end_frames(model, length, adapted=False)
    if model.main_input_name == "input_ids":
        return length
    return int(model.base_model.embeddings.position_embeddings.shape[1])


def logit_count(model: PreTrainedModel, length: int) -> int:
    """Frames that a model with logits for every frame gives them for.

    Fewer than those of its attention where an adapter behind the encoder takes every second one.
    """
    if hasattr(model, "_get_feat_extract_output_lengths"):
        return _front_end_frames(model, length, adapted=True)
    return frame_count(model, length)


def _front_end_frames(model: PreTrainedModel, length: int, adapted: bool) -> int:
    count: Callable[..., Tensor] = model._get_feat_extract_output_lengths
    takes_adapter = "add_adapter" in inspect.signature(count).parameters
    # Left out, the adapter counts where the model has one.
    options = {"add_adapter": False} if takes_adapter and not adapted else {}
    return int(count(torch.tensor(length), **options))
