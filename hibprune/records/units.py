"""Units that can be removed, how much each matters, and which of them go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from hibprune.records.base import Record
from hibprune.records.ranking import RankingFault, ranking_fault
from hibprune.records.statistics import split_half_correlation

ENCODER = "encoder"
FRONT_END = "front_end"
DECODER = "decoder"
DECODER_SELF, DECODER_CROSS = "decoder.self", "decoder.cross"


Scope = Literal["global", "layerwise"]
"""Whether a budget is one of all heads, or one for every layer."""


Kind = Literal["head", "neuron", "channel"]
"""What a unit is: an attention head, a neuron of a feed-forward, or a channel of a convolution."""


Pool = Literal["head", "neuron", "channel", "decoder_neuron", "decoder_head", "cross_head"]
"""What a budget names and scores are compared within: the units of one kind in one stack."""

POOLS: Mapping[Pool, tuple[Kind, str]] = {
    "head": ("head", ENCODER),
    "neuron": ("neuron", ENCODER),
    "channel": ("channel", FRONT_END),
    "decoder_neuron": ("neuron", DECODER),
    "decoder_head": ("head", DECODER_SELF),
    "cross_head": ("head", DECODER_CROSS),
}
"""The kind and the stack of each."""


def is_of_decoder(stack: str) -> bool:
    """Whether a stack's units lie in the layers of a decoder."""
    return stack in (DECODER, DECODER_SELF, DECODER_CROSS)


def min_kept(kind: Kind, stack: str, min_heads: int = 0) -> int:
    """How many units of a layer have to stay, of heads at least `min_heads`.

    A convolution gives out something. So does a decoder's attention, whose keys and values a
    decoder keeps from step to step: without any, transformers no longer knows how many tokens were
    said.
    """
    if kind == "channel":
        return 1
    return max(min_heads, int(is_of_decoder(stack))) if kind == "head" else 0


MixKind = Literal[
    "head", "neuron", "channel", "decoder_neuron", "decoder_head", "cross_head", "rank"
]
"""What one number for all kinds together may take: units of a pool, or ranks of projections."""
RANK: Literal["rank"] = "rank"


def pool_words(pool: MixKind, number: int = 2) -> str:
    """What so many units of a pool are called: `head`, `decoder neurons`."""
    return f"{pool.replace('_', ' ')}{'' if number == 1 else 's'}"


Currency = Literal["parameters", "multiply_adds"]
"""What is counted where one number is for all kinds together."""


OneNumber = Literal["parameters", "multiply_adds", "size_mb", "metric_drop", "speedup"]
"""The budgets that are such a number."""


@dataclass(frozen=True, order=True)
class Unit:
    """What can be removed, by its original place, also after earlier pruning.

    A head, a neuron of a feed-forward, or an output channel of a convolution. `stack` names the
    layers it belongs to: `encoder`, of heads also `decoder.self` and `decoder.cross`, of neurons
    `decoder`, of channels `front_end`. Where a layer has two feed-forwards, the second's neurons
    are counted on after the first's. JSON leaves out what is usual: the encoder, and that a unit is
    a head.
    """

    layer: int
    index: int
    stack: str = ENCODER
    kind: Kind = "head"

    def is_of(self, pool: Pool) -> bool:
        """Whether it is one of those that a budget calls so."""
        return (self.kind, self.stack) == POOLS[pool]

    @model_serializer(mode="wrap")
    def _without_the_usual(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        usual = {("stack", ENCODER), ("kind", "head")}
        return {k: v for k, v in content.items() if (k, v) not in usual}


Head = Unit
"""A unit that is a head, which is what one is where nothing else is said."""


def heads_by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    """Group heads as `{layer: [indices]}`, the form `prune_heads` and the manifest use."""
    grouped: dict[int, list[int]] = {}
    for head in sorted(heads):
        grouped.setdefault(head.layer, []).append(head.index)
    return grouped


def units_by_layer(units: Iterable[Unit]) -> dict[int, tuple[int, ...]]:
    """Group units of one kind as `{layer: indices}`, the form of plans and of the manifest."""
    return {layer: tuple(indices) for layer, indices in heads_by_layer(units).items()}


class Effort(Record):
    """What scoring took: seconds, and clips sent through the encoder and back.

    For `samples` of the calibration clips: fewer than all where an interrupted run had done some,
    or a share of a training.
    """

    seconds: float
    forwards: int
    backwards: int
    samples: int


class Scores(Record):
    """How much each head matters to the task: higher matters more.

    `per_sample` has one row per calibration sample, aligned with `samples`, and one column per
    head, aligned with `heads`; methods that look at weights alone, or at all samples together, have
    a single row. `steps` is how many each sample took, where the method had to find that out.
    """

    method: str
    heads: tuple[Head, ...]
    samples: tuple[str, ...]
    per_sample: tuple[tuple[float, ...], ...]
    steps: int | None = None
    effort: Effort | None = None

    @property
    def values(self) -> dict[Head, float]:
        """Mean over samples of each head's score."""
        n = len(self.per_sample)
        columns = zip(*self.per_sample, strict=True)
        return {head: sum(column) / n for head, column in zip(self.heads, columns, strict=True)}

    @property
    def split_half(self) -> float | None:
        """Spearman correlation of head scores between random halves of the samples.

        Near 1: the samples were enough to fix the ranking. None with fewer than 4 samples.
        """
        return split_half_correlation(self.per_sample)

    @property
    def ranking_fault(self) -> RankingFault | None:
        """Why the scores say nothing about which heads matter; None where they do."""
        return ranking_fault(self.per_sample, self.split_half)


class Training(Record):
    """How far a training over all samples together has come.

    `steps` are those done, `share` of all that there will be; `state` holds by name the vectors
    that the next step starts from.
    """

    steps: int
    share: float
    state: dict[str, tuple[float, ...]]


class Plan(Record):
    """Which heads go and which stay, both sorted by (layer, index), and what else goes.

    `neurons` maps a layer of the encoder to the original indices of the neurons that go, `channels`
    one of the front end to those of its channels, `decoder_neurons` one of the decoder to those of
    its neurons, `decoder_heads` and `cross_heads` to those of the heads of its self- and
    cross-attention. `ranks` maps a layer of the encoder to the ranks of its projections, by path,
    that become two matrices by a number for all kinds. JSON leaves out what is not of heads and
    neurons where none go.
    """

    removed: tuple[Head, ...]
    kept: tuple[Head, ...]
    neurons: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    channels: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    decoder_neurons: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    decoder_heads: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    cross_heads: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    ranks: dict[int, dict[str, int]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_the_unusual(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        unusual = ("channels", "decoder_neurons", "decoder_heads", "cross_heads", "ranks")
        return {name: value for name, value in content.items() if name not in unusual or value}

    @classmethod
    def of(
        cls,
        units: Iterable[Unit],
        heads: Iterable[Head],
        ranks: Mapping[int, Mapping[str, int]] | None = None,
    ) -> Plan:
        """The plan by which units of any kind go, of a model that has these heads."""
        gone = set(units)

        def by_layer(pool: Pool) -> dict[int, tuple[int, ...]]:
            return units_by_layer(unit for unit in gone if unit.is_of(pool))

        return cls(
            removed=tuple(sorted(unit for unit in gone if unit.is_of("head"))),
            kept=tuple(sorted(set(heads) - gone)),
            neurons=by_layer("neuron"),
            channels=by_layer("channel"),
            decoder_neurons=by_layer("decoder_neuron"),
            decoder_heads=by_layer("decoder_head"),
            cross_heads=by_layer("cross_head"),
            ranks={layer: dict(own) for layer, own in (ranks or {}).items()},
        )

    def by_layer(self, pool: Pool) -> dict[int, tuple[int, ...]]:
        """The original indices that go, by layer, of a pool other than heads."""
        found: dict[int, tuple[int, ...]] = getattr(self, f"{pool}s")
        return found

    @property
    def units(self) -> tuple[Unit, ...]:
        """All that go, of every kind."""
        others = (
            Unit(layer, index, stack, kind)
            for pool, (kind, stack) in POOLS.items()
            if pool != "head"
            for layer, indices in self.by_layer(pool).items()
            for index in indices
        )
        return (*self.removed, *others)

    @property
    def total(self) -> int:
        return len(self.removed) + len(self.kept)


class HeadShare(Record):
    """A fraction of `total` heads that was to go, over the whole model or of every layer."""

    fraction: float
    total: int
    scope: Scope

    def rounding(self, removed: int) -> str | None:
        """What rounding down to whole heads took, in words; None where it took nothing."""
        asked = round(self.fraction * self.total, 9)
        if asked == removed:
            return None
        where = " in every layer" if self.scope == "layerwise" else ""
        return f"{self.fraction:g} of {self.total} is {asked:g}, rounded down{where}"
