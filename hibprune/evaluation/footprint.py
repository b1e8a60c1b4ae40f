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
    model: PreTrainedModel, inputs: dict[str, Tensor], length: Length
) -> Footprint:
    """Count parameters, and the multiply-adds of matrix products and convolutions in one forward.

    `inputs` are one clip or text of some length; a decoder makes one step unless they hold tokens
    for it. Half of torch's floating-point operation count.
    """
    device = next(model.parameters()).device
    if has_decoder(model) and "decoder_input_ids" not in inputs:
        start = torch.full((1, 1), model.config.decoder_start_token_id)
        inputs = {**inputs, "decoder_input_ids": start}
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
    )
