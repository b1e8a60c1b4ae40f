"""WavLM's gated relative attention, written so that heads can be removed from it.

Hugging Face computes it through `F.multi_head_attention_forward`, which insists on all heads, hides
the output projection from hooks and averages the weights it returns over heads. The position bias
lives in the first layer and feeds every other one, so it keeps its full number of heads; each layer
picks its own from it (Chen et al. 2022, section III-B; the gate of Chi et al. 2022).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def wavlm_attention_forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    index: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Forward of `WavLMAttention` for whichever heads are still there.

    Takes hidden states (batch, frames, width), a mask (batch, frames) that is 1 on valid frames,
    and the position bias (batch × all heads, frames, frames), which the first layer creates.
    Returns output, weights (batch, heads, frames, frames) when asked for, and the position bias.
    """
    batch, frames, width = hidden_states.shape
    all_heads = width // self.head_dim
    # None in a later layer too where the first one's forward is replaced; an empty one needs none.
    if position_bias is None and hasattr(self, "rel_attn_embed"):
        bias = self.compute_bias(frames, frames)
        position_bias = bias.unsqueeze(0).repeat(batch, 1, 1, 1).view(-1, frames, frames)

    gone: set[int] = getattr(self, "pruned_heads", set())
    kept = [head for head in range(all_heads) if head not in gone]
    if not kept:
        nothing = hidden_states.new_zeros(batch, 0, frames, frames) if output_attentions else None
        return self.out_proj.bias.expand(batch, frames, width), nothing, position_bias
    assert position_bias is not None

    states = hidden_states.view(batch, frames, all_heads, -1).permute(0, 2, 1, 3)
    own_bias = position_bias.view(batch, all_heads, frames, frames)
    if gone:
        states, own_bias = states[:, kept], own_bias[:, kept]

    projected = self.gru_rel_pos_linear(states).view(batch, len(kept), frames, 2, 4).sum(-1)
    gate_a, gate_b = torch.sigmoid(projected).chunk(2, dim=-1)
    gate = gate_a * (gate_b * self.gru_rel_pos_const - 1.0) + 2.0
    scores_bias = gate * own_bias
    if attention_mask is not None:
        padded = attention_mask.ne(1)[:, None, None, :]
        scores_bias = scores_bias.masked_fill(padded, torch.finfo(scores_bias.dtype).min)

    def split(projection: nn.Linear) -> Tensor:
        projected: Tensor = projection(hidden_states)
        return projected.view(batch, frames, -1, self.head_dim).transpose(1, 2)

    query, key, value = split(self.q_proj), split(self.k_proj), split(self.v_proj)
    dropout = self.dropout if self.training else 0.0
    if output_attentions:
        scores = query @ key.transpose(-1, -2) * self.scaling + scores_bias
        weights = functional.dropout(scores.softmax(-1), dropout, training=self.training)
        context = weights @ value
    else:
        weights = None
        context = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=scores_bias, dropout_p=dropout, scale=self.scaling
        )
    context = context.transpose(1, 2).reshape(batch, frames, -1)
    return self.out_proj(context), weights, position_bias
