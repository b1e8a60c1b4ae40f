"""Where the attention heads lie, per model type: data, not code.

A new family is one entry in `FAMILIES` and a tiny configuration in `tests/tiny_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hibprune.errors import UserError


@dataclass(frozen=True)
class Stack:
    """The layout of one stack of attention, a module a layer. Paths are dotted attribute names."""

    name: str = "encoder"
    """`encoder` is the one whose heads can be removed; the others can be scored and silenced."""
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

    @property
    def projects_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return self.output.startswith(f"{self.attention}.")


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
        """The stack whose heads can be removed."""
        return self.stacks[0]

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


BERT_LIKE = Stack(
    layers="encoder.layer",
    attention="attention.self",
    query="query",
    key="key",
    value="value",
    output="attention.output.dense",
    head_count="num_attention_heads",
    head_size="attention_head_size",
    width="all_head_size",
)
WHISPER = Stack(attention="self_attn", output="self_attn.out_proj")
MOONSHINE = Stack(
    attention="self_attn",
    output="self_attn.o_proj",
    head_count=None,
    head_count_in_config="num_key_value_heads",
)


def with_decoder(encoder: Stack) -> tuple[Stack, ...]:
    """The three stacks of an encoder–decoder model whose attention modules are all alike."""
    decoder_self = replace(encoder, name="decoder.self", layers="decoder.layers")
    output = encoder.output.rpartition(".")[2]
    return (
        encoder,
        decoder_self,
        replace(
            decoder_self,
            name="decoder.cross",
            attention="encoder_attn",
            output=f"encoder_attn.{output}",
        ),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        model_type="wav2vec2",
        module="wav2vec2.modeling_wav2vec2",
        base_class="Wav2Vec2Model",
        attention_classes=("Wav2Vec2Attention",),
    ),
    Family(
        model_type="hubert",
        module="hubert.modeling_hubert",
        base_class="HubertModel",
        attention_classes=("HubertAttention",),
    ),
    Family(
        model_type="wavlm",
        module="wavlm.modeling_wavlm",
        base_class="WavLMModel",
        attention_classes=("WavLMAttention",),
        stacks=(Stack(parameters_per_head=(("gru_rel_pos_const", 1),)),),
    ),
    Family(
        model_type="data2vec-audio",
        module="data2vec.modeling_data2vec_audio",
        base_class="Data2VecAudioModel",
        attention_classes=("Data2VecAudioAttention",),
    ),
    Family(
        model_type="unispeech",
        module="unispeech.modeling_unispeech",
        base_class="UniSpeechModel",
        attention_classes=("UniSpeechAttention",),
    ),
    Family(
        model_type="unispeech-sat",
        module="unispeech_sat.modeling_unispeech_sat",
        base_class="UniSpeechSatModel",
        attention_classes=("UniSpeechSatAttention",),
    ),
    Family(
        model_type="wav2vec2-conformer",
        module="wav2vec2_conformer.modeling_wav2vec2_conformer",
        base_class="Wav2Vec2ConformerModel",
        attention_classes=("Wav2Vec2ConformerSelfAttention",),
        stacks=(
            Stack(
                attention="self_attn",
                query="linear_q",
                key="linear_k",
                value="linear_v",
                output="self_attn.linear_out",
                head_size="head_size",
                rows_per_head=("linear_pos",),
                parameters_per_head=(("pos_bias_u", 0), ("pos_bias_v", 0)),
            ),
        ),
        returns=2,
        prefix=(("feature_extractor", 2), ("feature_projection", 1)),
        equal_lengths=True,
    ),
    Family(
        model_type="audio-spectrogram-transformer",
        module="audio_spectrogram_transformer.modeling_audio_spectrogram_transformer",
        base_class="ASTModel",
        attention_classes=("ASTSelfAttention",),
        stacks=(replace(BERT_LIKE, attention="attention.attention"),),
        returns=2,
        prefix=(("embeddings", 1),),
    ),
    Family(
        model_type="whisper",
        module="whisper.modeling_whisper",
        base_class="WhisperModel",
        attention_classes=("WhisperAttention",),
        stacks=with_decoder(WHISPER),
        parts=(
            ("WhisperEncoder", "encoder"),
            ("WhisperDecoder", "decoder"),
            ("WhisperForAudioClassification", ""),
        ),
        returns=2,
        prefix=(("encoder.conv2", 2),),
        bypassed=("encoder.conv1",),
        positions="encoder.embed_positions",
        length_axis=2,
        equal_lengths=True,
    ),
    Family(
        model_type="moonshine",
        module="moonshine.modeling_moonshine",
        base_class="MoonshineModel",
        attention_classes=("MoonshineAttention",),
        stacks=with_decoder(MOONSHINE),
        parts=(("MoonshineEncoder", "encoder"), ("MoonshineDecoder", "decoder")),
        returns=2,
        prefix=(("encoder.conv3", 2),),
        bypassed=("encoder.conv1", "encoder.groupnorm", "encoder.conv2"),
        multipliers=("decoder.layers.*.mlp.activation_fn",),
        equal_lengths=True,
    ),
    Family(
        model_type="bert",
        module="bert.modeling_bert",
        base_class="BertModel",
        attention_classes=("BertSelfAttention", "BertSdpaSelfAttention"),
        stacks=(BERT_LIKE,),
        returns=2,
        prefix=(("embeddings", 1),),
        tokenizer_outputs=("input_ids", "attention_mask", "token_type_ids"),
    ),
    Family(
        model_type="roberta",
        module="roberta.modeling_roberta",
        base_class="RobertaModel",
        attention_classes=("RobertaSelfAttention", "RobertaSdpaSelfAttention"),
        stacks=(BERT_LIKE,),
        returns=2,
        prefix=(("embeddings", 1),),
        tokenizer_outputs=("input_ids", "attention_mask"),
        positions_after_padding=True,
    ),
    Family(
        model_type="distilbert",
        module="distilbert.modeling_distilbert",
        base_class="DistilBertModel",
        attention_classes=("MultiHeadSelfAttention", "DistilBertSdpaAttention"),
        stacks=(
            Stack(
                layers="transformer.layer",
                query="q_lin",
                key="k_lin",
                value="v_lin",
                output="attention.out_lin",
                head_count="n_heads",
                head_size="attention_head_size",
                width="dim",
            ),
        ),
        attention_input="query",
        returns=2,
        prefix=(("embeddings", 1),),
        tokenizer_outputs=("input_ids", "attention_mask"),
    ),
)


def families_by_type() -> Mapping[str, Family]:
    """The families, keyed by `config.model_type`."""
    return {family.model_type: family for family in FAMILIES}


def family_of(model_type: str, source: str = "model") -> Family:
    """The family of a model type.

    Raises:
        UserError: the place of its heads is not known; names the types that are.
    """
    families = families_by_type()
    if model_type not in families:
        raise UserError(
            f"{source}: no known attention heads in model type '{model_type}': "
            f"use one of {', '.join(sorted(families))}"
        )
    return families[model_type]
