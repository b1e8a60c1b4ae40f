"""The feed-forwards of a live model: find their neurons, and silence them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import stack_layers
from hibprune.models.families import family_of
from hibprune.models.layouts import FeedForward
from hibprune.records.units import ENCODER, Unit

Silencing = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class FeedForwardSite:
    """One feed-forward of a layer in a live model. `neurons[i]` is the neuron at position i.

    `part` is its place among the feed-forwards of the layer.
    """

    layer: int
    part: int
    layout: FeedForward
    neurons: tuple[Unit, ...]
    first: nn.Linear
    second: nn.Linear


def feed_forward_sites(model: PreTrainedModel) -> tuple[FeedForwardSite, ...]:
    """The feed-forwards of every layer of the encoder, with the neurons still there."""
    family = family_of(model.config.model_type)
    sites = []
    for number, layer in enumerate(stack_layers(model.base_model, family.encoder)):
        offset = 0
        for part, layout in enumerate(family.feed_forwards):
            first, second = layer.get_submodule(layout.first), layer.get_submodule(layout.second)
            assert isinstance(first, nn.Linear)
            assert isinstance(second, nn.Linear)
            gone = gone_neurons(first)
            count = first.out_features + len(gone)
            sites.append(
                FeedForwardSite(
                    layer=number,
                    part=part,
                    layout=layout,
                    neurons=tuple(
                        Unit(number, offset + place, ENCODER, "neuron")
                        for place in range(count)
                        if place not in gone
                    ),
                    first=first,
                    second=second,
                )
            )
            offset += count
    return tuple(sites)


def gone_neurons(first: nn.Module) -> frozenset[int]:
    """The original places of the neurons that were removed from a feed-forward."""
    gone: frozenset[int] = getattr(first, "gone_neurons", frozenset())
    return gone


def neurons_of(model: PreTrainedModel) -> tuple[Unit, ...]:
    """The neurons of the encoder that are still there, by layer."""
    return tuple(neuron for site in feed_forward_sites(model) for neuron in site.neurons)


@contextmanager
def neurons_silenced(model: PreTrainedModel, neurons: Iterable[Unit]) -> Iterator[None]:
    """Let some neurons give out nothing, as if they were removed."""
    silent = set(neurons)

    def silencing(places: list[int]) -> Silencing:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            outputs = inputs[0].clone()
            outputs[..., places] = 0
            return (outputs, *inputs[1:])

        return hook

    with ExitStack() as stack:
        for site in feed_forward_sites(model):
            places = [place for place, one in enumerate(site.neurons) if one in silent]
            if places:
                hook = silencing(places)
                stack.callback(site.second.register_forward_pre_hook(hook).remove)
        yield
