"""Greedy decoding with an encoder and a decoder, under PyTorch and ONNX Runtime alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from hibprune.execution.runtime import (
    ONNX_DIRECTORY,
    PROVIDERS,
    Outputs,
    Predict,
    Timed,
    plain_onnx_errors,
    require_provider,
    session_options,
)
from hibprune.records.generation import GenerationSettings
from hibprune.tasks.decoder_prompt import TRANSCRIBE

INPUTS_PER_SECOND = {"input_values": 16_000, "input_features": 100}
"""Samples that every published Moonshine takes, mel frames that every Whisper takes."""
COMPARED_TOKENS, COMPARED_STEPS = 4, 2
"""Tokens that parity feeds to a decoder at once, and then one by one on what it has kept."""
FEWER_HEADS = ("pruned_decoder_heads", "pruned_cross_heads")
"""Where a configuration speaks of heads of a decoder that are gone."""
GREEDY: dict[str, object] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
}


def steered(settings: GenerationSettings) -> dict[str, object]:
    """What `generate` is told so that a multilingual model transcribes its language."""
    return {} if settings.language is None else {"language": settings.language, "task": TRANSCRIBE}


def with_settings(model: PreTrainedModel, settings: GenerationSettings) -> PreTrainedModel:
    """The same model, which says by itself what it says when it is measured.

    Shares everything with the one given but its settings, and those are what is saved: whoever
    calls `generate` without arguments gets the transcripts that were measured, but for
    `max_tokens_per_second`, which has no place in them.
    """
    generation = copy.deepcopy(model.generation_config)
    told = {**GREEDY, **steered(settings), "max_new_tokens": settings.max_new_tokens}
    for name, value in told.items():
        setattr(generation, name, value)
    # Else transformers makes the settings from config.json anew when it loads them.
    generation._from_model_config = False
    same = copy.copy(model)
    same.generation_config, same.config = generation, copy.deepcopy(model.config)
    # What config.json says of generation is not heard while generation_config.json is there, but
    # saving the model, and Optimum when it loads one, let it take the place of what that says.
    for name in model.config._get_non_default_generation_parameters():
        setattr(same.config, name, None)
    return same


def with_mask(extractor: Any) -> Any:
    """The same feature extractor, giving out the mask that graphs on waveforms insist on."""
    same = copy.copy(extractor)
    if "input_values" in same.model_input_names:
        same.return_attention_mask = True
    return same


def generate_with(model: Any, settings: GenerationSettings, exactly: int | None = None) -> Predict:
    """Transcription in tokens, (batch, tokens); `exactly` as many, whatever they are, if given.

    Inputs go where the model is: Optimum hands ONNX Runtime their addresses unseen, and one of the
    processor's memory is none of a GPU's.
    """
    told = {**GREEDY, **steered(settings)}

    def predict(inputs: dict[str, Tensor]) -> np.ndarray:
        limit = settings.max_tokens(_seconds_heard(inputs)) if exactly is None else exactly
        with torch.inference_mode():
            tokens = model.generate(
                **_on(model.device, _masked(inputs)),
                **told,
                min_new_tokens=exactly,
                max_new_tokens=limit,
            )
        return np.asarray(tokens.cpu())

    return predict


def _seconds_heard(inputs: dict[str, Tensor]) -> float:
    ((name, heard),) = inputs.items()
    return heard.shape[-1] / INPUTS_PER_SECOND[name]


def _on(device: torch.device, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in inputs.items()}


def _masked(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """A waveform with its mask, which Moonshine's graphs insist on: clips are equally long."""
    if "input_values" not in inputs:
        return inputs
    mask = torch.ones_like(inputs["input_values"], dtype=torch.long)
    return {**inputs, "attention_mask": mask}


def load_exported(directory: Path, device: str, threads: int | None = None) -> Any:
    """The graphs in `directory`/onnx with what generates from them, as Optimum runs them.

    From the folder itself: of a folder above, Optimum would search all others in it as well, and
    take the first graph of that name.

    Raises:
        UserError: they cannot be loaded, or the provider is not to be had.
    """
    from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

    provider = PROVIDERS[device]
    with plain_onnx_errors(f"{directory}: ONNX Runtime cannot load it"):
        exported = ORTModelForSpeechSeq2Seq.from_pretrained(
            directory / ONNX_DIRECTORY,
            provider=provider,
            session_options=session_options(device, threads),
            use_merged=True,
            local_files_only=True,
        )
    require_provider(exported.encoder.session, provider, directory)
    if any(getattr(exported.config, name, None) for name in FEWER_HEADS):
        # It would make room for as many keys as if all heads were there.
        exported.use_io_binding = False
    return exported


def outputs_of(model: Any) -> Outputs:
    """All that the encoder and either way through the decoder give out, for the same tokens.

    A decoder is fed some tokens at once, and then more, one at a time, on what it has kept.
    """

    def outputs(inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            tokens = _compared_tokens(model.config, inputs)
            said = _decode(model, inputs, None, tokens[:, :COMPARED_TOKENS], None)
            states, steps = said.encoder_last_hidden_state, []
            logits, past = said.logits, said.past_key_values
            for place in range(COMPARED_TOKENS, tokens.shape[1]):
                said = _decode(model, inputs, states, tokens[:, place : place + 1], past)
                steps.append(said.logits)
                past = said.past_key_values
        return {
            "encoder states": _array(states),
            "decoder logits": _array(logits),
            "decoder logits of single steps": _array(torch.cat(steps, 1)),
        }

    return outputs


def _compared_tokens(config: Any, inputs: dict[str, Tensor]) -> Tensor:
    (heard,) = inputs.values()
    shape = (len(heard), COMPARED_TOKENS + COMPARED_STEPS)
    drawn = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, shape, generator=drawn)
    tokens[:, 0] = config.decoder_start_token_id
    return tokens


def _decode(
    model: Any, inputs: dict[str, Tensor], states: Tensor | None, tokens: Tensor, past: Any
) -> Any:
    """One pass: of encoder and decoder, or of the decoder alone where it has states to go on."""
    heard = _masked(inputs)
    if states is not None:
        heard = {name: value for name, value in heard.items() if name not in inputs}
    return model(
        **_on(model.device, heard),
        encoder_outputs=None if states is None else BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=tokens.to(model.device),
        past_key_values=past,
        use_cache=True,
    )


def _array(value: Tensor) -> np.ndarray:
    return np.asarray(value.float().cpu())


def timed_parts(exported: Any, settings: GenerationSettings, tokens: int) -> Timed:
    """A transcript of so many tokens, the encoder alone, and one step halfway through."""
    transcribe = generate_with(exported, settings, exactly=tokens)

    def work(inputs: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
        start, shape = exported.config.decoder_start_token_id, (1, max(1, tokens // 2))
        prompt = torch.full(shape, start, device=exported.device)
        begun = _decode(exported, inputs, None, prompt, None)
        states, past = begun.encoder_last_hidden_state, begun.past_key_values
        heard, mask = _masked(inputs), {"attention_mask": None}
        return {
            "transcript": lambda: transcribe(inputs),
            "encoder": lambda: exported.encoder(**mask | _on(exported.device, heard)),
            "one decoder step": lambda: _decode(exported, inputs, states, prompt[:, :1], past),
        }

    return work
