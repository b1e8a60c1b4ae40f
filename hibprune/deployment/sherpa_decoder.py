"""Whisper's decoder over keys and values of one width, as sherpa-onnx keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

NEVER = -1e4
"""Added to the logit of what must not be said; such tokens stay in their order."""


def self_width(model: PreTrainedModel) -> int:
    """Features of the widest layer's keys of self-attention; every layer has a head."""
    return _width([layer.self_attn for layer in model.get_decoder().layers])


def cross_width(model: PreTrainedModel) -> int:
    """The same of cross-attention."""
    return _width([layer.encoder_attn for layer in model.get_decoder().layers])


def _width(attentions: Sequence[Any]) -> int:
    return max(int(one.k_proj.out_features) for one in attentions)


def stacked(tensors: Sequence[Tensor], width: int) -> Tensor:
    """Tensors (…, own width) as one (layers, …, width), zeros behind the narrower ones."""
    return torch.stack([functional.pad(one, (0, width - one.shape[-1])) for one in tensors])


class Decoder(nn.Module):
    """All layers on some tokens, behind `offset` others whose keys and values are kept."""

    suppressed: Tensor
    suppressed_first: Tensor

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.decoder: Any = model.get_decoder()
        self.output: Any = model.get_output_embeddings()
        self.width = self_width(model)
        generation, size = model.generation_config, int(self.output.weight.shape[0])
        for name, tokens in (
            ("suppressed", generation.suppress_tokens),
            ("suppressed_first", generation.begin_suppress_tokens),
        ):
            never = torch.zeros(size)
            never[[token for token in tokens or () if token < size]] = NEVER
            self.register_buffer(name, never)

    def forward(
        self,
        tokens: Tensor,
        keys: Tensor,
        values: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
        offset: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (batch, tokens, vocabulary), and what is kept with these tokens in it.

        `tokens` (batch, tokens); `keys` and `values` (layers, batch, positions, width), of which
        the first `offset` (1) are of earlier tokens; those of cross-attention (layers, batch, heard
        positions, width).
        """
        # Numbers to Python, tensors to the tracer, which else would take them for fixed.
        start: Any = offset[0]
        end = start + tokens.shape[1]
        states = self.decoder.embed_tokens(tokens) + self.decoder.embed_positions.weight[start:end]
        told = torch.arange(end, device=tokens.device)
        seen = told[None] <= told[start:, None]
        new_keys, new_values = [], []
        for number, layer in enumerate(self.decoder.layers):
            attention = layer.self_attn
            heard = layer.self_attn_layer_norm(states)
            key, value = attention.k_proj(heard), attention.v_proj(heard)
            new_keys.append(key)
            new_values.append(value)
            width = key.shape[-1]
            kept = keys[number, :, :start, :width], values[number, :, :start, :width]
            key, value = torch.cat([kept[0], key], dim=1), torch.cat([kept[1], value], dim=1)
            states = states + _attended(attention, heard, key, value, seen)
            attention = layer.encoder_attn
            heard = layer.encoder_attn_layer_norm(states)
            width = attention.k_proj.out_features
            key, value = cross_keys[number, ..., :width], cross_values[number, ..., :width]
            states = states + _attended(attention, heard, key, value, None)
            heard = layer.final_layer_norm(states)
            states = states + layer.fc2(layer.activation_fn(layer.fc1(heard)))
        # The table of embeddings is stored once where it is not turned.
        states = self.decoder.layer_norm(states).transpose(1, 2)
        logits = torch.matmul(self.output.weight, states).transpose(1, 2) + self.suppressed
        logits = logits + self.suppressed_first * (offset == 0).to(logits.dtype)
        kept_keys, kept_values = (
            torch.cat([old[:, :, :start], stacked(new, self.width), old[:, :, end:]], dim=2)
            for old, new in ((keys, new_keys), (values, new_values))
        )
        return logits, kept_keys, kept_values


def _attended(
    attention: Any, states: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None
) -> Tensor:
    """What attention adds to states (batch, tokens, width); `seen` (tokens, keys) masks it."""
    heads = int(attention.k_proj.out_features) // int(attention.head_dim)

    def split(tensor: Tensor) -> Tensor:
        by_head: Tensor = tensor.unflatten(-1, (heads, int(attention.head_dim)))
        return by_head.transpose(1, 2)

    queries = split(attention.q_proj(states) * attention.scaling)
    scores = queries @ split(keys).transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    mixed = scores.softmax(-1) @ split(values)
    output: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return output
