"""The sublayers of a stack: attention and feed-forwards, each with what it writes and to where.

A sublayer adds W·z + b to the residual stream r, where W is its writer: the attention's output
projection, or the second matrix of a feed-forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import attention_sites, stack_layers
from hibprune.models.families import family_of
from hibprune.models.feed_forward import feed_forward_sites
from hibprune.models.layerwise import Enough, name_of_states
from hibprune.models.layouts import FeedForward, Stack, column_blocks
from hibprune.records.units import DECODER_CROSS, DECODER_SELF, ENCODER, Kind, Unit

ATTENTION = {
    ENCODER: "attention",
    DECODER_SELF: "decoder self-attention",
    DECODER_CROSS: "decoder cross-attention",
}
"""What reports call the attention of a stack."""


@dataclass(frozen=True)
class Sublayer:
    """One place where a layer of an encoder or a decoder writes into the residual stream.

    `units[i]` owns columns i·size to (i + 1)·size of the writer. `residual` is the module whose
    input is what the output, times `scale`, is added to. `attention` is the module that computes
    heads; it applies the writer itself where `writes_inside`.
    """

    layer: int
    stack: str
    kind: Kind
    part: int
    units: tuple[Unit, ...]
    size: int
    writer: nn.Linear
    residual: nn.Module
    scale: float
    attention: nn.Module | None = None
    writes_inside: bool = False

    @property
    def name(self) -> str:
        """How a report calls it, without its layer: `attention`, `decoder feed-forward`."""
        if self.kind == "head":
            return ATTENTION[self.stack]
        name = "feed-forward" if not self.part else f"feed-forward {self.part + 1}"
        return name if self.stack == ENCODER else f"{self.stack} {name}"

    @property
    def blocks(self) -> list[list[int]]:
        """The columns of each unit."""
        return column_blocks(len(self.units), self.size)


def sublayers(model: PreTrainedModel, name: str = ENCODER) -> tuple[tuple[Sublayer, ...], ...]:
    """The sublayers of every layer of the encoder or of the decoder, in the order they run."""
    family = family_of(model.config.model_type)
    attention = (family.encoder,) if name == ENCODER else family.decoder_attention
    layers = stack_layers(model.base_model, attention[0])
    attending = [_attending(model, stack, layers) for stack in attention]
    feeding: list[list[Sublayer]] = [[] for _ in layers]
    stable = bool(getattr(model.config, "do_stable_layer_norm", False))
    for site in feed_forward_sites(model, name):
        feeding[site.layer].append(
            Sublayer(
                layer=site.layer,
                stack=name,
                kind="neuron",
                part=site.part,
                units=site.neurons,
                size=1,
                writer=site.second,
                residual=layers[site.layer].get_submodule(_residual(site.layout, stable)),
                scale=site.layout.scale,
            )
        )
    found: list[tuple[Sublayer, ...]] = []
    for own, behind in zip(zip(*attending, strict=True), feeding, strict=True):
        # The first half of a conformer's feed-forward runs in front of its attention.
        front = len(behind) - 1
        found.append((*behind[:front], *own, *behind[front:]))
    return tuple(found)


def _attending(model: PreTrainedModel, stack: Stack, layers: Sequence[nn.Module]) -> list[Sublayer]:
    """The attention of a stack, layer by layer."""
    found = []
    for site in attention_sites(model, [stack.name]):
        assert isinstance(site.output, nn.Linear)
        found.append(
            Sublayer(
                layer=site.layer,
                stack=stack.name,
                kind="head",
                part=0,
                units=site.heads,
                size=site.head_size,
                writer=site.output,
                residual=layers[site.layer].get_submodule(stack.residual),
                scale=1.0,
                attention=site.module,
                writes_inside=stack.projects_inside,
            )
        )
    return found


def _residual(layout: FeedForward, stable: bool) -> str:
    if stable and layout.residual_if_stable is not None:
        return layout.residual_if_stable
    return layout.residual


@dataclass(frozen=True)
class Written:
    """What a sublayer did in a forward pass: units' output z, what was written, and the stream."""

    units: Tensor
    written: Tensor
    residual: Tensor


@contextmanager
def writing_recorded(
    chosen: Sequence[Sublayer], then_stop: bool = False
) -> Iterator[dict[int, Written]]:
    """Collect, in a pass through their layer, what sublayers write, by place in `chosen`.

    `then_stop` leaves the rest of the layer, and of the `with` block, alone once all is there.
    """
    streams: dict[int, Tensor] = {}
    recorded: dict[int, Written] = {}

    def keep(place: int, written: Written) -> None:
        recorded[place] = written
        if then_stop and len(recorded) == len(chosen):
            raise Enough

    def stream(place: int) -> Any:
        def hook(_module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            states = positional[0] if positional else named[name_of_states(named)]
            streams[place] = states
            if not chosen[place].units:
                # A layer without heads does not run its writer.
                bias = chosen[place].writer.bias
                written = torch.zeros_like(states) if bias is None else bias.expand_as(states)
                keep(place, Written(states[..., :0], written, states))

        return hook

    def written(place: int) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            keep(place, Written(inputs[0], output, streams[place]))

        return hook

    with suppress(Enough), ExitStack() as stack:
        for place, one in enumerate(chosen):
            handle = one.residual.register_forward_pre_hook(stream(place), with_kwargs=True)
            stack.callback(handle.remove)
            stack.callback(one.writer.register_forward_hook(written(place)).remove)
        yield recorded
