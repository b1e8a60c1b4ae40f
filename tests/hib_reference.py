"""HIB as the paper describes it and nothing more: one sample at a time, the whole model each step.

Shares no code with the package. Values are caught as the value projection gives them out, and what
the output projection is fed is replaced; queries, keys and the original softmax are computed and
thrown away. Benchmarks hold the package against it, so that it loops over samples and steps and
nothing else. Only the order in which random numbers are drawn is agreed upon.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def agreed_generator(seed: int | str, sample: str, device: str = "cpu") -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{sample}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


def reference_attention(
    model: Any,
    projections: list[tuple[Any, Any]],
    head_size: int,
    frames: int,
    task_loss: Callable[[], Tensor],
    generator: torch.Generator,
    *,
    steps: int,
    beta: float,
    noise: float = 0.9,
    learning_rate: float = 0.1,
    initial_scale: float = 0.1,
    bottleneck: str = "paper",
    activation: str = "softmax",
) -> list[Tensor]:
    """A_HIB (heads, frames, frames) of every layer for one sample.

    `projections` are each layer's (value, output) projections.
    """
    for weight in model.parameters():
        weight.requires_grad_(False)
    head_counts = [value.out_features // head_size for value, _ in projections]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    learned = [
        (initial_scale * drawn(heads, frames, frames)).requires_grad_(True) for heads in head_counts
    ]
    optimiser = torch.optim.Adam(learned, lr=learning_rate)

    def attention(raw: Tensor) -> Tensor:
        return torch.softmax(raw, dim=-1) if activation == "softmax" else torch.sigmoid(raw)

    caught: dict[int, Tensor] = {}
    handles = []
    for layer, (value, output) in enumerate(projections):

        def catch(_m: Any, _i: Any, result: Tensor, layer: int = layer) -> None:
            caught[layer] = result

        def replace(_m: Any, inputs: tuple[Tensor, ...], layer: int = layer) -> tuple[Tensor, ...]:
            draws = drawn(head_counts[layer], frames, head_size)
            v = caught[layer][0].view(frames, -1, head_size).transpose(0, 1)
            mean, deviation = v.mean(1, keepdim=True), v.std(1, unbiased=False, keepdim=True)
            z = attention(learned[layer]) @ ((v - mean) / deviation) + noise * draws
            joined = (z * deviation + mean).transpose(0, 1).reshape(1, frames, -1)
            return (joined, *inputs[1:])

        handles.append(value.register_forward_hook(catch))
        handles.append(output.register_forward_pre_hook(replace))

    for _ in range(steps):
        loss = task_loss()
        terms = torch.cat(
            [row_divergence(attention(raw), head_size, noise, bottleneck) for raw in learned]
        )
        total = loss + beta * terms.mean()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    for handle in handles:
        handle.remove()
    return [attention(raw).detach() for raw in learned]


def row_divergence(rows: Tensor, d: int, noise: float, bottleneck: str) -> Tensor:
    """Every frame's term, written out as in the paper (eq. 15) or METHOD's corrections of it."""
    power = (rows * rows).sum(-1)
    if bottleneck == "paper":
        trace = power + noise**2 * d
        log_determinant = torch.log(power + noise**2) + (d - 1) * math.log(noise**2)
        return 0.5 * (trace - d - log_determinant)
    if bottleneck == "exact":
        return 0.5 * d * (power + noise**2 - 1 - torch.log(power + noise**2))
    return 0.5 * d * torch.log(1 + power / noise**2)
