"""What is said of a family: where its units lie, and what must be known to work on them."""

from __future__ import annotations

from dataclasses import dataclass

from hibprune.errors import UserError


@dataclass(frozen=True)
class Stack:
    """The layout of one stack of attention, a module a layer. Paths are dotted attribute names."""

    name: str = "encoder"
    """`encoder`, or `decoder.self` and `decoder.cross`."""
    layers: str = "encoder.layers"
    """From the base model to the list of layers."""
    attention: str = "attention"
    """From a layer to the module that computes the attention."""
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    """Names of the projections within the attention module."""
    output: str = "attention.out_proj"
    """From a layer to the output projection, inside or beside the attention module."""
    residual: str = ""
    """From a layer to the module whose input the attention's output is added to; empty: the layer
    itself."""
    head_size: str = "head_dim"
    """Attribute of the attention module."""
    head_count: str | None = "num_heads"
    """Attribute of the attention module that counts its heads."""
    head_count_in_config: str | None = None
    """Where that is None: attribute of its configuration, which all layers share."""
    width: str | None = None
    """Attribute of the attention module that holds heads times head size, where it has one."""
    rows_per_head: tuple[str, ...] = ()
    """Further linear layers in the attention module whose output rows belong to heads."""
    parameters_per_head: tuple[tuple[str, int], ...] = ()
    """Further parameters in the attention module: name and the dimension that counts heads."""
    gone_in_config: str | None = None
    """Attribute of the configuration that remembers which heads are gone; None where that is
    `pruned_heads`, which transformers reads."""

    @property
    def projects_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return self.output.startswith(f"{self.attention}.")


@dataclass(frozen=True)
class FeedForward:
    """The layout of one feed-forward of every layer of a stack. Paths start from a layer."""

    first: str = "feed_forward.intermediate_dense"
    second: str = "feed_forward.output_dense"
    """The matrices before and behind the activation; a neuron is a row of one, a column of the
    other."""
    residual: str = "feed_forward"
    """The module whose input is what the feed-forward's output is added to."""
    residual_if_stable: str | None = None
    """The same where `config.do_stable_layer_norm` puts the norms in front."""
    scale: float = 1.0
    """What the output is multiplied by before it is added."""
    gated: bool = False
    """The first matrix gives out twice as much: neurons, then their gates in the same order."""

    @property
    def rows(self) -> int:
        """How many rows of the first matrix belong to a neuron."""
        return 2 if self.gated else 1


@dataclass(frozen=True)
class NeuronStack:
    """The feed-forwards of all layers of a stack, and what a configuration says of them."""

    name: str
    layers: str
    """From the base model to the list of layers."""
    feed_forwards: tuple[FeedForward, ...]
    """Those of a layer, in the order they run."""
    count_in_config: str | None
    """Attribute of the configuration that gives every feed-forward's number of neurons, where the
    stack has one of its own."""
    gone_in_config: str
    """Attribute that remembers which neurons are gone."""


def column_blocks(units: int, size: int) -> list[list[int]]:
    """The columns of each of so many units, of a matrix where each owns `size` side by side."""
    return [list(range(place * size, (place + 1) * size)) for place in range(units)]


@dataclass(frozen=True)
class FrontEnd:
    """The layout of the convolutions in front of an encoder. Paths start from the base model."""

    layers: str = "feature_extractor.conv_layers"
    """The list of layers, each a convolution with what follows it."""
    convolution: str = "conv"
    norm: str = "layer_norm"
    """Within a layer, or within the projection; the norm only where there is one."""
    projection: str = "feature_projection"
    """The module behind the last layer; it takes frames first and channels last."""
    matrix: str = "projection"
    """The linear layer within it."""
    channels_in_config: str = "conv_dim"
    """Attribute of the configuration that gives each layer's number of channels."""


@dataclass(frozen=True)
class Convolutions:
    """The layout of convolutions that stand side by side in an encoder, each followed by GELU.

    The channels of all but the last can go: those of the last are the width of the encoder. The
    configuration has no attribute for their numbers, so that they are built whole and made smaller.
    """

    paths: tuple[str, ...] = ("encoder.conv1", "encoder.conv2")
    """From the base model to each, in the order they run."""


@dataclass(frozen=True)
class Family:
    """Where a model type keeps its attention, and what it takes in."""

    model_type: str
    """`config.model_type` of Hugging Face."""
    module: str
    """The modeling module below `transformers.models`."""
    base_class: str
    """The class that `prune_heads` calls `_prune_heads` on."""
    attention_classes: tuple[str, ...]
    """Classes of the modules that compute attention. Where there are several, each is an
    implementation of its own, chosen when the model is built."""
    stacks: tuple[Stack, ...] = (Stack(),)
    """The encoder's self-attention first."""
    feed_forwards: tuple[FeedForward, ...] = (FeedForward(residual_if_stable="final_layer_norm"),)
    """Those of an encoder layer, in the order they run."""
    neurons_in_config: str | None = "intermediate_size"
    """Attribute of the configuration that gives every feed-forward's number of neurons, where the
    encoder's have one of their own."""
    decoder_feed_forwards: tuple[FeedForward, ...] = ()
    """Those of a decoder layer, where there is a decoder."""
    decoder_neurons_in_config: str | None = None
    """As `neurons_in_config`, of the decoder's."""
    front_end: FrontEnd | Convolutions | None = None
    """The convolutions whose channels can be removed, where there are any."""
    parts: tuple[tuple[str, str], ...] = ()
    """Further classes that transformers prunes while it builds them, and their path within the
    base model; an empty path for one that is laid out like it."""
    attention_input: str = "hidden_states"
    """What the attention module calls its first argument."""
    returns: int = 3
    """Length of the tuple that the attention module returns: output, weights, then None."""
    prefix: tuple[tuple[str, int], ...] = (
        ("feature_extractor", 2),
        ("feature_projection", 1),
        ("encoder.pos_conv_embed", 1),
    )
    """Modules whose outputs depend on the clip alone, not on any attention, with the dimension
    that counts frames."""
    bypassed: tuple[str, ...] = ()
    """Modules in front of those, which need not run once the prefix is known."""
    positions: str | None = None
    """The table of positions, where the encoder insists on an input that fills all of it."""
    multipliers: tuple[str, ...] = ()
    """Patterns of paths within the base model: activations that scale another branch."""
    length_axis: int = 1
    """The dimension of the main input that counts samples, spectrogram frames or tokens."""
    equal_lengths: bool = False
    """A batch needs clips of equal length: padded frames would influence valid ones."""

    tokenizer_outputs: tuple[str, ...] = ()
    """What models of text take of that which their tokenizer gives out."""
    positions_after_padding: bool = False
    """Positions are counted from behind the number of the padding token, which the table of
    positions has to hold as well."""

    @property
    def modeling_module(self) -> str:
        """Full name of the module that defines the family's classes."""
        return f"transformers.models.{self.module}"

    @property
    def encoder(self) -> Stack:
        """The stack of the encoder."""
        return self.stacks[0]

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths, from a layer of the encoder, of the matrices of attention and feed-forwards."""
        own = self.encoder
        reading = (f"{own.attention}.{name}" for name in (own.query, own.key, own.value))
        feeding = (path for one in self.feed_forwards for path in (one.first, one.second))
        return (*reading, own.output, *feeding)

    @property
    def neuron_stacks(self) -> tuple[NeuronStack, ...]:
        """The stacks whose neurons can be removed: the encoder, and then the decoder if any."""
        encoder = NeuronStack(
            name="encoder",
            layers=self.encoder.layers,
            feed_forwards=self.feed_forwards,
            count_in_config=self.neurons_in_config,
            gone_in_config="pruned_neurons",
        )
        if not self.decoder_feed_forwards:
            return (encoder,)
        decoder = NeuronStack(
            name="decoder",
            layers=self.decoder_attention[0].layers,
            feed_forwards=self.decoder_feed_forwards,
            count_in_config=self.decoder_neurons_in_config,
            gone_in_config="pruned_decoder_neurons",
        )
        return (encoder, decoder)

    @property
    def decoder_attention(self) -> tuple[Stack, ...]:
        """Self- and cross-attention of a decoder's layers, in the order they run."""
        return self.stacks[1:]

    def stack(self, name: str) -> Stack:
        """The stack of a name.

        Raises:
            UserError: the family has none of that name; says which it has.
        """
        for stack in self.stacks:
            if stack.name == name:
                return stack
        raise UserError(
            f"model type '{self.model_type}' has no attention heads '{name}': "
            f"use {' or '.join(stack.name for stack in self.stacks)}"
        )
