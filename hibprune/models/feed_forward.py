"""The feed-forwards of a live model: find their neurons, and silence them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import stack_layers
from hibprune.models.families import family_of, has_decoder
from hibprune.models.layouts import FeedForward, NeuronStack
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


def neuron_stack(model: PreTrainedModel, name: str = ENCODER) -> NeuronStack | None:
    """The stack of a name, where a model has one whose neurons can be removed."""
    return next((stack for stack in neuron_stacks(model) if stack.name == name), None)


def neuron_stacks(model: PreTrainedModel) -> tuple[NeuronStack, ...]:
    """All whose neurons can be removed; a classifier in the place of a decoder has none."""
    stacks = family_of(model.config.model_type).neuron_stacks
    return stacks if has_decoder(model) else stacks[:1]


def feed_forward_sites(model: PreTrainedModel, name: str = ENCODER) -> tuple[FeedForwardSite, ...]:
    """The feed-forwards of every layer of a stack, with the neurons still there.

    None where the model has no such stack.
    """
    stack = neuron_stack(model, name)
    sites: list[FeedForwardSite] = []
    for number, layer in enumerate(() if stack is None else stack_layers(model.base_model, stack)):
        offset = 0
        for part, layout in enumerate(() if stack is None else stack.feed_forwards):
            first, second = layer.get_submodule(layout.first), layer.get_submodule(layout.second)
            assert isinstance(first, nn.Linear)
            assert isinstance(second, nn.Linear)
            gone = gone_neurons(first)
            count = second.in_features + len(gone)
            sites.append(
                FeedForwardSite(
                    layer=number,
                    part=part,
                    layout=layout,
                    neurons=tuple(
                        Unit(number, offset + place, name, "neuron")
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


def neurons_of(model: PreTrainedModel, stack: str = ENCODER) -> tuple[Unit, ...]:
    """The neurons of a stack that are still there, by layer."""
    return tuple(neuron for site in feed_forward_sites(model, stack) for neuron in site.neurons)


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
        sites = (feed_forward_sites(model, one) for one in {unit.stack for unit in silent})
        for site in (site for own in sites for site in own):
            places = [place for place, one in enumerate(site.neurons) if one in silent]
            if places:
                hook = silencing(places)
                stack.callback(site.second.register_forward_pre_hook(hook).remove)
        yield
