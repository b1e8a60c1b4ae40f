"""A decoder run a layer at a time on transcripts that it is fed, over what an encoder gives out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import encoder_output, stack_layers
from hibprune.models.families import family_of
from hibprune.models.hidden_states import HiddenStates
from hibprune.models.layerwise import (
    CalibrationClip,
    ClipBatch,
    KeptCall,
    clip_batches,
    kept_calls,
    layer_calls_caught,
)

FILLER = 0
"""The token behind the end of a transcript that is shorter than others beside it: nothing before it
attends to it."""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model's decoder, first to last."""
    family = family_of(model.config.model_type)
    return stack_layers(model.base_model, family.decoder_attention[0])


def transcript_batches(
    model: PreTrainedModel, clips: Sequence[CalibrationClip]
) -> tuple[ClipBatch, ...]:
    """Clips of equal shape together; what counts of each are its tokens (clips, tokens)."""
    shapes: dict[tuple[int, int, int], int] = {}
    found = []
    for batch in clip_batches(model, clips):
        lengths = torch.tensor([_tokens(clips[place]).shape[1] for place in batch.places])
        counts = torch.arange(int(lengths.max())) < lengths[:, None]
        key = (batch.shape, *counts.shape)
        found.append(replace(batch, shape=shapes.setdefault(key, len(shapes)), counts=counts))
    return tuple(found)


def _tokens(clip: CalibrationClip) -> Tensor:
    assert clip.tokens is not None, "a clip without a transcript"
    return clip.tokens


class LayerwiseDecoder:
    """The layers of a decoder, and what they are handed beside hidden states.

    All but what the decoder hears depends on the shape of a batch alone, and is found out once.
    """

    def __init__(self, model: PreTrainedModel, states: HiddenStates) -> None:
        self._model = model
        self._states = states
        self._calls: dict[int, list[KeptCall]] = {}
        self.layers = decoder_layers(model)

    def start(self, batch: ClipBatch, clips: Sequence[CalibrationClip]) -> Tensor:
        """The hidden states (batch, tokens, width) that enter the first layer."""
        heard = encoder_output(self._model, batch.inputs(clips))
        self._states.put(_heard("original", batch), heard)
        tokens = torch.full(batch.counts.shape, FILLER)
        for row, place in enumerate(batch.places):
            tokens[row, : _tokens(clips[place]).shape[1]] = _tokens(clips[place])[0]
        known = batch.shape in self._calls
        decoder = self._model.get_decoder()
        with torch.no_grad(), layer_calls_caught(self.layers, only_first=known) as caught:
            decoder(input_ids=tokens.to(heard.device), encoder_hidden_states=heard, use_cache=False)
        if not known:
            calls, name = [call for _, call in caught], f"decoder call/{batch.shape}"
            self._calls[batch.shape] = kept_calls(calls, name, self._states, heard)
        return caught[0][0]

    def hear_pruned(
        self, pruned: PreTrainedModel, batch: ClipBatch, clips: Sequence[CalibrationClip]
    ) -> None:
        """Let layers of a pruned model hear what its own encoder gives out."""
        self._states.put(_heard("pruned", batch), encoder_output(pruned, batch.inputs(clips)))

    def __call__(
        self, batch: ClipBatch, layer: int, states: Tensor, instead: nn.Module | None = None
    ) -> Tensor:
        """What a layer makes of hidden states, or that of the pruned model in its place."""
        heard = _heard("original" if instead is None else "pruned", batch)
        call = self._calls[batch.shape][layer].call(self._states, heard)
        return call(self.layers[layer] if instead is None else instead, states)


def _heard(model: str, batch: ClipBatch) -> str:
    return f"{model} hears/{batch.number}"
