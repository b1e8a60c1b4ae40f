"""Tiny models of every family, from configurations: no network, milliseconds to build."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

# Matrices this small make several threads wait for each other: 5 times slower on 2 busy cores.
torch.set_num_threads(1)

LAYERS, HEADS, CLASSES = 2, 4, 5
HEAD_SIZE = 8
SAMPLES_PER_SECOND = 16_000

CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (8, 5, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
TRANSFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
}
STABLE: dict[str, Any] = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
"""What the large checkpoints have."""
RELATIVE: dict[str, Any] = {"position_embeddings_type": "relative", "max_source_positions": 200}
ROTARY: dict[str, Any] = {"position_embeddings_type": "rotary"}


SPEECH_TO_TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "pad_token_id": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WHISPER: dict[str, Any] = {
    **SPEECH_TO_TEXT,
    "d_model": 32,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 37,
    "num_mel_bins": 16,
    "max_source_positions": 40,
    "max_target_positions": 20,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
MOONSHINE: dict[str, Any] = {
    **SPEECH_TO_TEXT,
    "hidden_size": 32,
    "intermediate_size": 37,
    "encoder_num_hidden_layers": LAYERS,
    "decoder_num_hidden_layers": LAYERS,
    "encoder_num_attention_heads": HEADS,
    "decoder_num_attention_heads": HEADS,
    # Half of a head's 8 features turn; the usual 0.9 of them is an odd number.
    "partial_rotary_factor": 0.5,
}
TEXT: dict[str, Any] = {**TRANSFORMER, "vocab_size": 40, "max_position_embeddings": 130}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 40,
    "max_position_embeddings": 130,
    "dim": 32,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": 37,
}
SPEAKING, TAGGING, READING = (
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForAudioClassification",
    "AutoModelForSequenceClassification",
)


@dataclass(frozen=True)
class TinyModel:
    """One row of the table the contract tests run over."""

    name: str
    configuration: str
    settings: dict[str, Any] = field(default_factory=dict)
    takes: Literal["waveform", "patches", "mel", "tokens"] = "waveform"
    auto_class: str = TAGGING

    @property
    def speaks(self) -> bool:
        """Has a decoder that says tokens."""
        return self.auto_class == SPEAKING

    @property
    def main_input(self) -> str:
        return {"tokens": "input_ids", "mel": "input_features"}.get(self.takes, "input_values")

    @property
    def equal_lengths(self) -> bool:
        """Whether a batch of it holds clips of one length only."""
        return self.speaks or self.takes == "patches" or self.name.startswith("conformer")

    def config(self, **more: Any) -> Any:
        common = {}
        if not self.speaks and self.takes != "tokens":
            common = TRANSFORMER
            if self.takes == "waveform":
                common = {**common, **CONVOLUTIONS, "vocab_size": 32}
        settings = {**common, "num_labels": CLASSES, **self.settings, **more}
        return getattr(transformers, self.configuration)(**settings)

    def build(self, auto_class: str | None = None, attention: str | None = None) -> PreTrainedModel:
        """A model whose weights are large enough for every head to move the logits.

        What Hugging Face starts at 0 or 1 is spread out, so that a bias of the wrong head shows.
        """
        torch.manual_seed(0)
        auto = getattr(transformers, auto_class or self.auto_class)
        options = {} if attention is None else {"attn_implementation": attention}
        model = auto.from_config(self.config(), **options).eval()
        parts = ("encoder", "decoder", "transformer.")
        if self.takes == "tokens":
            parts = (*parts, "classifier.weight")
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if not any(part in name for part in parts):
                    continue
                if "embed" in name and self.speaks:
                    continue
                if weight.dim() == 2 or ".encoder.conv" in name:
                    weight.mul_(8)
                elif "bias" in name or "const" in name:
                    weight.add_(torch.randn_like(weight) * 0.3)
        return model

    def inputs(self, batch: int = 2, seconds: float = 0.25) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        if self.takes == "tokens":
            shape = (batch, round(100 * seconds))
            # Neither 0 nor 1, which pad.
            return {self.main_input: torch.randint(2, 40, shape, generator=generator)}
        shape = {
            "patches": (batch, 64, 32),
            "mel": (batch, 16, 80),
            "waveform": (batch, int(seconds * SAMPLES_PER_SECOND)),
        }[self.takes]
        inputs = {self.main_input: torch.randn(shape, generator=generator)}
        if self.speaks:
            inputs["decoder_input_ids"] = torch.randint(4, 40, (batch, 5), generator=generator)
        return inputs

    def padded_inputs(self) -> dict[str, torch.Tensor]:
        """Three clips of different length in one batch, with the mask that says so."""
        inputs = self.inputs(batch=3)
        longest = inputs[self.main_input].shape[1]
        lengths = torch.tensor([longest, 5 * longest // 8, longest // 4])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        return {self.main_input: inputs[self.main_input] * mask, "attention_mask": mask}


TINY_MODELS = (
    TinyModel("wav2vec2", "Wav2Vec2Config"),
    TinyModel("wav2vec2-stable", "Wav2Vec2Config", STABLE),
    TinyModel("hubert", "HubertConfig"),
    TinyModel("wavlm", "WavLMConfig"),
    TinyModel("wavlm-stable", "WavLMConfig", STABLE),
    TinyModel("data2vec-audio", "Data2VecAudioConfig", {"conv_pos_kernel_size": 7}),
    TinyModel("unispeech", "UniSpeechConfig"),
    TinyModel("unispeech-sat", "UniSpeechSatConfig"),
    TinyModel("conformer-relative", "Wav2Vec2ConformerConfig", RELATIVE),
    TinyModel("conformer-rotary", "Wav2Vec2ConformerConfig", ROTARY),
    TinyModel("ast", "ASTConfig", {"max_length": 64, "num_mel_bins": 32}, "patches"),
    TinyModel("whisper", "WhisperConfig", WHISPER, "mel", SPEAKING),
    TinyModel("moonshine", "MoonshineConfig", MOONSHINE, "waveform", SPEAKING),
    TinyModel("bert", "BertConfig", TEXT, "tokens", READING),
    TinyModel("roberta", "RobertaConfig", TEXT, "tokens", READING),
    TinyModel("distilbert", "DistilBertConfig", DISTILBERT, "tokens", READING),
)

RAW_AUDIO = tuple(tiny for tiny in TINY_MODELS if tiny.takes == "waveform" and not tiny.speaks)
MASKED = (*RAW_AUDIO, *(tiny for tiny in TINY_MODELS if tiny.takes == "tokens"))
"""Those that take padded batches with a mask."""
WITH_DECODER = tuple(tiny for tiny in TINY_MODELS if tiny.speaks)

PLANS: dict[str, dict[int, list[int]]] = {
    "uneven": {0: [1, 3], 1: [0]},
    "first emptied": {0: [0, 1, 2, 3], 1: [1, 2]},
    "last emptied": {0: [2], 1: [0, 1, 2, 3]},
}
"""Heads to remove, `{layer: [indices]}`."""
