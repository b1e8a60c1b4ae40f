"""Where heads, neurons and channels lie, per model type: data, not code.

A new family is one entry in `FAMILIES` and a tiny configuration in `tests/tiny_models.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from hibprune.errors import UserError
from hibprune.models.layouts import Convolutions, Family, FeedForward, FrontEnd, Stack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
CONVOLUTIONS = FrontEnd()
BERT_NEURONS = FeedForward("intermediate.dense", "output.dense", "intermediate")
WHISPER = Stack(attention="self_attn", output="self_attn.out_proj")
MOONSHINE = Stack(
    attention="self_attn",
    output="self_attn.o_proj",
    head_count=None,
    head_count_in_config="num_key_value_heads",
)


def with_decoder(encoder: Stack, cross_residual: str) -> tuple[Stack, ...]:
    """The three stacks of an encoder–decoder model whose attention modules are all alike."""
    decoder_self = replace(
        encoder,
        name="decoder.self",
        layers="decoder.layers",
        gone_in_config="pruned_decoder_heads",
    )
    output = encoder.output.rpartition(".")[2]
    return (
        encoder,
        decoder_self,
        replace(
            decoder_self,
            name="decoder.cross",
            attention="encoder_attn",
            output=f"encoder_attn.{output}",
            residual=cross_residual,
            gone_in_config="pruned_cross_heads",
        ),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        model_type="wav2vec2",
        module="wav2vec2.modeling_wav2vec2",
        base_class="Wav2Vec2Model",
        front_end=CONVOLUTIONS,
        attention_classes=("Wav2Vec2Attention",),
    ),
    Family(
        model_type="hubert",
        module="hubert.modeling_hubert",
        base_class="HubertModel",
        front_end=CONVOLUTIONS,
        attention_classes=("HubertAttention",),
    ),
    Family(
        model_type="wavlm",
        module="wavlm.modeling_wavlm",
        base_class="WavLMModel",
        front_end=CONVOLUTIONS,
        attention_classes=("WavLMAttention",),
        stacks=(Stack(parameters_per_head=(("gru_rel_pos_const", 1),)),),
    ),
    Family(
        model_type="data2vec-audio",
        module="data2vec.modeling_data2vec_audio",
        base_class="Data2VecAudioModel",
        front_end=CONVOLUTIONS,
        feed_forwards=(FeedForward(),),
        attention_classes=("Data2VecAudioAttention",),
    ),
    Family(
        model_type="unispeech",
        module="unispeech.modeling_unispeech",
        base_class="UniSpeechModel",
        front_end=CONVOLUTIONS,
        attention_classes=("UniSpeechAttention",),
    ),
    Family(
        model_type="unispeech-sat",
        module="unispeech_sat.modeling_unispeech_sat",
        base_class="UniSpeechSatModel",
        front_end=CONVOLUTIONS,
        attention_classes=("UniSpeechSatAttention",),
    ),
    Family(
        model_type="wav2vec2-conformer",
        module="wav2vec2_conformer.modeling_wav2vec2_conformer",
        base_class="Wav2Vec2ConformerModel",
        front_end=CONVOLUTIONS,
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
                residual="self_attn_layer_norm",
            ),
        ),
        returns=2,
        feed_forwards=(
            FeedForward(
                first="ffn1.intermediate_dense",
                second="ffn1.output_dense",
                residual="ffn1_layer_norm",
                scale=0.5,
            ),
            FeedForward(
                first="ffn2.intermediate_dense",
                second="ffn2.output_dense",
                residual="ffn2_layer_norm",
                scale=0.5,
            ),
        ),
        prefix=(("feature_extractor", 2), ("feature_projection", 1)),
        equal_lengths=True,
    ),
    Family(
        model_type="audio-spectrogram-transformer",
        module="audio_spectrogram_transformer.modeling_audio_spectrogram_transformer",
        base_class="ASTModel",
        attention_classes=("ASTSelfAttention",),
        stacks=(replace(BERT_LIKE, attention="attention.attention"),),
        feed_forwards=(replace(BERT_NEURONS, residual="layernorm_after"),),
        returns=2,
        prefix=(("embeddings", 1),),
    ),
    Family(
        model_type="whisper",
        module="whisper.modeling_whisper",
        base_class="WhisperModel",
        front_end=Convolutions(),
        attention_classes=("WhisperAttention",),
        stacks=with_decoder(WHISPER, "encoder_attn_layer_norm"),
        feed_forwards=(FeedForward("fc1", "fc2", "final_layer_norm"),),
        neurons_in_config="encoder_ffn_dim",
        decoder_feed_forwards=(FeedForward("fc1", "fc2", "final_layer_norm"),),
        decoder_neurons_in_config="decoder_ffn_dim",
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
        stacks=with_decoder(MOONSHINE, "post_attention_layernorm"),
        feed_forwards=(FeedForward("mlp.fc1", "mlp.fc2", "post_attention_layernorm"),),
        neurons_in_config=None,
        decoder_feed_forwards=(FeedForward("mlp.fc1", "mlp.fc2", "final_layernorm", gated=True),),
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
        feed_forwards=(BERT_NEURONS,),
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
        feed_forwards=(BERT_NEURONS,),
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
        feed_forwards=(FeedForward("ffn.lin1", "ffn.lin2", "ffn"),),
        neurons_in_config="hidden_dim",
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


def has_decoder(model: PreTrainedModel) -> bool:
    """Whether a decoder comes behind the encoder; not so where a classifier has taken its place."""
    return bool(model.config.is_encoder_decoder) and hasattr(model, "get_encoder")
