"""Whisper as sherpa-onnx takes it: its names, its shapes, its metadata, its table of tokens.

Its encoder gives out keys and values of cross-attention; its decoder takes and gives back those of
self-attention as one tensor, of one width for all layers, which holds layers of any number of
heads. What sherpa-onnx itself leaves out is in the graphs: silence up to the model's window, and
tokens that the model must not say.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, WhisperFeatureExtractor

from hibprune.deployment.exporter import plain_exporter
from hibprune.deployment.sherpa_decoder import Decoder, cross_width, self_width, stacked
from hibprune.errors import UserError
from hibprune.execution.files import write_text
from hibprune.models.preprocessing import Preprocessor, SoundPreprocessor
from hibprune.tasks.decoder_prompt import steering_tokens

DIRECTORY = "sherpa"
ENCODER, DECODER, TOKENS = "encoder.onnx", "decoder.onnx", "tokens.txt"
BANDS = (80, 128)
"""Of the spectra that sherpa-onnx makes."""
QUIETEST, RANGE = -1.5, 2.0
"""Whisper's, of its spectra as the model takes them: silence, and how far below the loudest."""
CACHES = ("in_n_layer_self_k_cache", "in_n_layer_self_v_cache")
CROSS = ("n_layer_cross_k", "n_layer_cross_v")
NOTHING_SAID = ("<|nospeech|>", "<|nocaptions|>")
TASKS = ("transcribe", "translate")


def require_sherpa(model: PreTrainedModel, preprocessor: Preprocessor) -> None:
    """See that sherpa-onnx can run a model. Raises UserError."""
    fault = _fault(model, preprocessor)
    if fault is not None:
        raise UserError(f"export.sherpa: {fault}: leave it out")


def _fault(model: PreTrainedModel, preprocessor: Preprocessor) -> str | None:
    speaks = model.can_generate() and model.config.model_type == "whisper"
    if not speaks or not isinstance(preprocessor, SoundPreprocessor):
        return "the files are those of a Whisper that transcribes"
    extractor = preprocessor.feature_extractor
    if not isinstance(extractor, WhisperFeatureExtractor) or extractor.feature_size not in BANDS:
        return "sherpa-onnx makes spectra of 80 or 128 bands, and the model takes others"
    if getattr(model.generation_config, "no_timestamps_token_id", None) is None:
        return "generation_config.json has no no_timestamps_token_id, which sherpa-onnx says first"
    return None


class Encoder(nn.Module):
    """Whisper's encoder with the keys and values that the decoder's layers make of its states."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = model.get_encoder()
        self.attentions = nn.ModuleList(layer.encoder_attn for layer in model.get_decoder().layers)
        self.width = cross_width(model)
        self.window = 2 * int(model.config.max_source_positions)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra (batch, bands, frames), in which zeros are no sound, to keys and values.

        Both (layers, batch, positions, width).
        """
        states = self.encoder(filled_up(mel, self.window)).last_hidden_state
        attentions: list[Any] = list(self.attentions)
        keys = [one.k_proj(states) for one in attentions]
        values = [one.v_proj(states) for one in attentions]
        return stacked(keys, self.width), stacked(values, self.width)


def filled_up(mel: Tensor, window: int) -> Tensor:
    """A spectrum with silence behind its sound, as long as a model's window, or cut there."""
    sound = mel.abs().sum(1, keepdim=True) > 0
    lowest = torch.full_like(mel, torch.finfo(mel.dtype).min)
    loudest = torch.where(sound, mel, lowest).amax((1, 2), keepdim=True)
    silence = torch.clamp(loudest - RANGE, min=QUIETEST)
    behind = silence.expand(-1, mel.shape[1], window)
    return torch.cat([torch.where(sound, mel, silence), behind], dim=2)[:, :, :window]


def write_sherpa(
    model: PreTrainedModel,
    tokenizer: Any,
    language: str | None,
    directory: Path,
    opset: int,
    properties: Mapping[str, object],
) -> None:
    """Write encoder, decoder and table of tokens; `properties` are said of both graphs as well.

    `model` is on the CPU, and not touched.

    Raises:
        UserError: torch or onnx cannot do it at this opset.
    """
    with plain_exporter("export.sherpa", opset):
        _write_graphs(model, directory, opset)
        own = {key: json.dumps(value) for key, value in properties.items()}
        about = {**own, **metadata(model, tokenizer, language)}
        for name in (ENCODER, DECODER):
            _describe(directory / name, about)
    write_text(directory / TOKENS, table_of_tokens(tokenizer))


def _write_graphs(model: PreTrainedModel, directory: Path, opset: int) -> None:
    config = model.config
    # Two of each, as in a number of heads or layers that is 1 nothing could be told apart.
    mel = torch.zeros(2, config.num_mel_bins, 2 * config.max_source_positions) + 0.5
    encoder, decoder = Encoder(model).eval(), Decoder(model).eval()
    batch = {1: "n_audio"}
    with torch.no_grad():
        cross = encoder(mel)
    _export(
        encoder,
        (mel,),
        directory / ENCODER,
        {"mel": {0: "n_audio", 2: "frames"}},
        dict.fromkeys(CROSS, batch),
        opset,
    )
    layers, length = config.decoder_layers, config.max_target_positions
    caches = (torch.zeros(layers, 2, length, self_width(model)),) * 2
    tokens = torch.full((2, 3), int(config.decoder_start_token_id))
    _export(
        decoder,
        (tokens, *caches, *cross, torch.ones(1, dtype=torch.int64)),
        directory / DECODER,
        {
            "tokens": {0: "n_audio", 1: "n_tokens"},
            **dict.fromkeys((*CACHES, *CROSS), batch),
            "offset": {},
        },
        {
            "logits": {0: "n_audio", 1: "n_tokens"},
            **{f"out{name.removeprefix('in')}": batch for name in CACHES},
        },
        opset,
    )


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    target: Path,
    inputs: Mapping[str, Mapping[int, str]],
    outputs: Mapping[str, Mapping[int, str]],
    opset: int,
) -> None:
    torch.onnx.export(
        module,
        example,
        target,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: dict(axes) for name, axes in {**inputs, **outputs}.items()},
        opset_version=opset,
        dynamo=False,
    )


def metadata(model: PreTrainedModel, tokenizer: Any, language: str | None) -> dict[str, str]:
    """What sherpa-onnx reads of a graph, as text: sizes, and numbers of tokens."""
    config, generation = model.config, model.generation_config
    languages: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    known: dict[str, int] = tokenizer.get_vocab()
    end = int(config.eos_token_id)

    def number(*names: str) -> int:
        """Of the first token that there is; where there is none, one that is never said."""
        return next((known[name] for name in names if name in known), end)

    *steering, silent = steering_tokens(language, generation)
    start = int(config.decoder_start_token_id)
    numbers: dict[str, object] = {
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        # Of what the decoder keeps, which sherpa-onnx makes room for.
        "n_text_state": self_width(model),
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
        "sot": start,
        "sot_index": 0,
        "eot": end,
        "blank_id": number("Ġ"),
        "is_multilingual": int(bool(languages)),
        "no_speech": number(*NOTHING_SAID),
        "no_timestamps": silent,
        **{task: number(f"<|{task}|>") for task in TASKS},
    }
    return {
        "model_type": f"whisper-{config.model_type}",
        "version": "1",
        "maintainer": "hibprune",
        "sot_sequence": ",".join(map(str, [start, *steering])),
        "all_language_tokens": ",".join(map(str, languages.values())),
        "all_language_codes": ",".join(token.strip("<|>") for token in languages),
        **{key: str(value) for key, value in numbers.items()},
    }


def table_of_tokens(tokenizer: Any) -> str:
    """A line for each token of text: its bytes in base64, and its number."""
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    added = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    lines = [
        f"{base64.b64encode(bytes(byte_of[letter] for letter in token)).decode()} {number}\n"
        for token, number in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
        if number not in added and token and all(letter in byte_of for letter in token)
    ]
    return "".join(lines)


def _describe(path: Path, properties: Mapping[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(properties))
    onnx.save(model, path)
