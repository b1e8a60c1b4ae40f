"""Tiny models of every family, from configurations: no network, milliseconds to build."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class TinyModel:
    """One row of the table the contract tests run over."""

    name: str
    configuration: str
    settings: dict[str, Any] = field(default_factory=dict)
    spectrogram: bool = False

    def config(self, **more: Any) -> Any:
        common = {} if self.spectrogram else {**CONVOLUTIONS, "vocab_size": 32}
        settings = {**TRANSFORMER, **common, "num_labels": CLASSES, **self.settings, **more}
        return getattr(transformers, self.configuration)(**settings)

    def build(self, auto_class: str = "AutoModelForAudioClassification") -> PreTrainedModel:
        """A model whose weights are large enough for every head to move the logits.

        What Hugging Face starts at 0 or 1 is spread out, so that a bias of the wrong head shows.
        """
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_config(self.config()).eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.dim() == 2 and "encoder" in name:
                    weight.mul_(8)
                elif "encoder" in name and ("bias" in name or "const" in name):
                    weight.add_(torch.randn_like(weight) * 0.3)
        return model

    def inputs(self, batch: int = 2, seconds: float = 0.25) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.spectrogram:
            return torch.randn(batch, 64, 32, generator=generator)
        return torch.randn(batch, int(seconds * SAMPLES_PER_SECOND), generator=generator)

    def padded_inputs(self) -> dict[str, torch.Tensor]:
        """Three clips of different length in one batch, with the mask that says so."""
        waveforms = self.inputs(batch=3)
        lengths = torch.tensor([waveforms.shape[1], 2500, 900])
        mask = torch.arange(waveforms.shape[1]) < lengths[:, None]
        return {"input_values": waveforms * mask, "attention_mask": mask.long()}


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
    TinyModel("ast", "ASTConfig", {"max_length": 64, "num_mel_bins": 32}, spectrogram=True),
)

RAW_AUDIO = tuple(tiny for tiny in TINY_MODELS if not tiny.spectrogram)

PLANS: dict[str, dict[int, list[int]]] = {
    "uneven": {0: [1, 3], 1: [0]},
    "first emptied": {0: [0, 1, 2, 3], 1: [1, 2]},
    "last emptied": {0: [2], 1: [0, 1, 2, 3]},
}
"""Heads to remove, `{layer: [indices]}`."""
