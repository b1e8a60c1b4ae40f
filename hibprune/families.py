"""Where the attention heads lie, per model type: data, not code.

A new family is one entry in `FAMILIES` and a tiny configuration in `tests/tiny_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hibprune.errors import UserError


@dataclass(frozen=True)
class Family:
    """The layout of one model type's encoder self-attention. Paths are dotted attribute names."""

    model_type: str
    """`config.model_type` of Hugging Face."""
    module: str
    """The modeling module below `transformers.models`."""
    base_class: str
    """The class that `prune_heads` calls `_prune_heads` on."""
    attention_class: str
    """The class of the module at `attention`."""
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
    head_count: str = "num_heads"
    head_size: str = "head_dim"
    """Attributes of the attention module."""
    width: str | None = None
    """Attribute of the attention module that holds heads times head size, where it has one."""
    returns: int = 3
    """Length of the tuple that the attention module returns: output, weights, then None."""
    rows_per_head: tuple[str, ...] = ()
    """Further linear layers in the attention module whose output rows belong to heads."""
    parameters_per_head: tuple[tuple[str, int], ...] = ()
    """Further parameters in the attention module: name and the dimension that counts heads."""
    prefix: tuple[tuple[str, int], ...] = (
        ("feature_extractor", 2),
        ("feature_projection", 1),
        ("encoder.pos_conv_embed", 1),
    )
    """Modules whose outputs depend on the clip alone, not on any attention, with the dimension
    that counts frames."""
    raw_audio: bool = True
    """Takes a waveform and an attention mask over it; otherwise a spectrogram of fixed length."""
    padding_reaches_frames: bool = False
    """A layer lets padded frames influence valid ones, so that a batch needs equal lengths."""

    @property
    def modeling_module(self) -> str:
        """Full name of the module that defines the family's classes."""
        return f"transformers.models.{self.module}"

    @property
    def projects_inside(self) -> bool:
        """Whether the attention module applies the output projection itself."""
        return self.output.startswith(f"{self.attention}.")


FAMILIES: tuple[Family, ...] = (
    Family(
        model_type="wav2vec2",
        module="wav2vec2.modeling_wav2vec2",
        base_class="Wav2Vec2Model",
        attention_class="Wav2Vec2Attention",
    ),
    Family(
        model_type="hubert",
        module="hubert.modeling_hubert",
        base_class="HubertModel",
        attention_class="HubertAttention",
    ),
    Family(
        model_type="wavlm",
        module="wavlm.modeling_wavlm",
        base_class="WavLMModel",
        attention_class="WavLMAttention",
        parameters_per_head=(("gru_rel_pos_const", 1),),
    ),
    Family(
        model_type="data2vec-audio",
        module="data2vec.modeling_data2vec_audio",
        base_class="Data2VecAudioModel",
        attention_class="Data2VecAudioAttention",
    ),
    Family(
        model_type="unispeech",
        module="unispeech.modeling_unispeech",
        base_class="UniSpeechModel",
        attention_class="UniSpeechAttention",
    ),
    Family(
        model_type="unispeech-sat",
        module="unispeech_sat.modeling_unispeech_sat",
        base_class="UniSpeechSatModel",
        attention_class="UniSpeechSatAttention",
    ),
    Family(
        model_type="wav2vec2-conformer",
        module="wav2vec2_conformer.modeling_wav2vec2_conformer",
        base_class="Wav2Vec2ConformerModel",
        attention_class="Wav2Vec2ConformerSelfAttention",
        attention="self_attn",
        query="linear_q",
        key="linear_k",
        value="linear_v",
        output="self_attn.linear_out",
        head_size="head_size",
        returns=2,
        rows_per_head=("linear_pos",),
        parameters_per_head=(("pos_bias_u", 0), ("pos_bias_v", 0)),
        prefix=(("feature_extractor", 2), ("feature_projection", 1)),
        padding_reaches_frames=True,
    ),
    Family(
        model_type="audio-spectrogram-transformer",
        module="audio_spectrogram_transformer.modeling_audio_spectrogram_transformer",
        base_class="ASTModel",
        attention_class="ASTSelfAttention",
        layers="encoder.layer",
        attention="attention.attention",
        query="query",
        key="key",
        value="value",
        output="attention.output.dense",
        head_count="num_attention_heads",
        head_size="attention_head_size",
        width="all_head_size",
        returns=2,
        prefix=(("embeddings", 1),),
        raw_audio=False,
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
