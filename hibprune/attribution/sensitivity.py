"""How the loss changes with each head's output: what Taylor and relevance methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.attribution.batches import CalibrationBatch
from hibprune.attribution.session import Loss
from hibprune.models.attention import AttentionSite, attention_sites, outputs_changed
from hibprune.models.feed_forward import feed_forward_sites
from hibprune.models.front_end import front_end_parts
from hibprune.models.replay import prefix_replayed
from hibprune.records.units import ENCODER, Head


def gate_gradients(
    model: PreTrainedModel, calibration: CalibrationBatch, loss: Loss, stacks: Iterable[str]
) -> tuple[Tensor, Tensor]:
    """∂loss/∂ξ at ξ = 1 for a factor ξ on each head's output, and the losses themselves.

    Shapes (batch, heads), in the order of `heads_of(model, stacks)`, and (batch,). By the chain
    rule it is the sum, over frames and features, of output times gradient at the head's output.
    """
    sites = [site for site in attention_sites(model, stacks) if site.heads]
    size, like = len(calibration.batch.ids), next(model.parameters())
    gates: Mapping[Head, Tensor] = {
        site.heads[0]: like.new_ones(size, len(site.heads)).requires_grad_(True) for site in sites
    }

    def gated(site: AttentionSite, outputs: Tensor) -> Tensor:
        return outputs * gates[site.heads[0]][:, None, :, None]

    with (
        torch.enable_grad(),
        prefix_replayed(model, calibration.prefix),
        outputs_changed(model, gated, stacks),
    ):
        losses = loss(model, calibration.batch)
        gradients = torch.autograd.grad(losses.sum(), list(gates.values()))
    return torch.cat(gradients, dim=1), losses.detach()


def neuron_gradients(
    model: PreTrainedModel, calibration: CalibrationBatch, loss: Loss, stack: str = ENCODER
) -> tuple[Tensor, Tensor]:
    """∂loss/∂ξ at ξ = 1 for a factor ξ on each neuron's output, and the losses themselves.

    Shapes (batch, neurons), in the order of `neurons_of(model, stack)`, and (batch,).
    """
    sites = feed_forward_sites(model, stack)
    size, like = len(calibration.batch.ids), next(model.parameters())
    gates = [like.new_ones(size, len(site.neurons)).requires_grad_(True) for site in sites]

    def gating(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _module, inputs: (inputs[0] * gate[:, None, :], *inputs[1:])

    with ExitStack() as hooks:
        hooks.enter_context(torch.enable_grad())
        hooks.enter_context(prefix_replayed(model, calibration.prefix))
        for site, gate in zip(sites, gates, strict=True):
            hooks.callback(site.second.register_forward_pre_hook(gating(gate)).remove)
        losses = loss(model, calibration.batch)
        gradients = torch.autograd.grad(losses.sum(), gates)
    return torch.cat(gradients, dim=1), losses.detach()


def channel_gradients(
    model: PreTrainedModel, calibration: CalibrationBatch, loss: Loss
) -> tuple[Tensor, Tensor]:
    """∂loss/∂ξ at ξ = 1 for a factor ξ on what each channel of the front end gives out.

    Shapes (batch, channels), in the order of `channels_of(model)`, and losses (batch,). Padding
    would change what a front end gives out: samples of a batch are to be of one length.
    """
    parts = front_end_parts(model)
    size, like = len(calibration.batch.ids), next(model.parameters())
    gates = [like.new_ones(size, len(part.units)).requires_grad_(True) for part in parts[1:]]

    def gating(gate: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        return lambda _module, inputs: (inputs[0] * gate, *inputs[1:])

    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        # What a part gives out is what the next one is given.
        for part, gate in zip(parts[1:], gates, strict=True):
            projects = part.is_projection
            reader, shaped = (
                (part.module, gate[:, None]) if projects else (part.writer, gate[:, :, None])
            )
            stack.callback(reader.register_forward_pre_hook(gating(shaped)).remove)
        losses = loss(model, calibration.batch)
        gradients = torch.autograd.grad(losses.sum(), gates)
    return torch.cat(gradients, dim=1), losses.detach()


def columns_by_layer(heads: Iterable[Head]) -> list[list[int]]:
    """The places of the heads of each layer of each stack in a row of scores."""
    grouped: dict[tuple[str, int], list[int]] = {}
    for place, head in enumerate(heads):
        grouped.setdefault((head.stack, head.layer), []).append(place)
    return list(grouped.values())
