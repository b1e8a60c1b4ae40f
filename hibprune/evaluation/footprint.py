"""What a model costs by count: parameters and multiply-adds."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hibprune.models.attention import frozen
from hibprune.models.families import has_decoder
from hibprune.records.measurements import Footprint
from hibprune.records.medium import Length


def measure_footprint(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    length: Length,
    decoded_tokens: int | None = None,
    window_seconds: float | None = None,
) -> Footprint:
    """Count parameters, and the multiply-adds of matrix products and convolutions in one forward.

    `inputs` are one clip or text of some length, filled up to `window_seconds` where there is a
    window. A decoder is counted for the tokens that `inputs` hold for it, or for `decoded_tokens`
    fed at once, or for one. Half of torch's floating-point operation count.
    """
    device = next(model.parameters()).device
    if has_decoder(model):
        start = torch.full((1, decoded_tokens or 1), model.config.decoder_start_token_id)
        inputs = {"decoder_input_ids": start, **inputs}
        decoded_tokens = inputs["decoder_input_ids"].shape[1]
    counter = FlopCounterMode(display=False)
    with (
        frozen(model),
        torch.no_grad(),
        # The counter does not know torch's fused attention on the CPU.
        sdpa_kernel(SDPBackend.MATH),
        counter,
    ):
        model(**{name: value.to(device) for name, value in inputs.items()})
    return Footprint(
        parameters=sum(weight.numel() for weight in model.parameters()),
        macs=counter.get_total_flops() // 2,
        length=length,
        decoded_tokens=decoded_tokens,
        window_seconds=window_seconds,
    )
