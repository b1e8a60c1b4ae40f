"""HIB's noisy channel: attention from A_r, values mixed under noise, and the information left."""

from __future__ import annotations

import torch
from torch import Tensor

from hibprune.attribution.hib_settings import Activation, Bottleneck


def activate(raw: Tensor, valid: Tensor | None, activation: Activation) -> Tensor:
    """A_HIB from A_r, nothing on padded keys; rows sum to 1 under softmax (appendix B).

    `valid` (batch, frames) is None where nothing is padded, here and below.
    """
    if valid is None:
        return raw.sigmoid() if activation == "sigmoid" else raw.softmax(-1)
    padded = ~valid[:, None, None, :]
    if activation == "sigmoid":
        return raw.sigmoid().masked_fill(padded, 0.0)
    return raw.masked_fill(padded, float("-inf")).softmax(-1)


def noisy_mix(
    weights: Tensor,
    values: Tensor,
    valid: Tensor | None,
    noise: float,
    draws: Tensor,
    activation: Activation,
) -> Tensor:
    """Z = A·V + λ·σ_V·ε: eq. 6 on values scaled to mean 0 and variance 1, with the scaling undone.

    Mean and deviation are those of each head's feature over the sample's valid frames. Rows that
    sum to 1 (softmax) carry the mean over unchanged; others leave part of it, which is put back.
    """
    mean, variance = moments(values, valid)
    # A feature that never varies carries no information and gets no noise; the floor keeps the
    # gradient of the root finite.
    deviation = variance.clamp_min(1e-12).sqrt()
    mixed = weights @ values
    if activation == "sigmoid":
        mixed = mixed + (1 - weights.sum(-1, keepdim=True)) * mean
    return torch.addcmul(mixed, draws, noise * deviation).to(values.dtype)


def moments(values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance over valid frames of values (batch, heads, frames, head size)."""
    mask = None if valid is None else valid[:, None, :, None].to(values.dtype)

    def over_frames(each: Tensor) -> Tensor:
        if mask is None:
            return each.mean(2, keepdim=True)
        return (each * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True)

    mean = over_frames(values)
    # Deviations sum to 0, so that no gradient of the variance reaches the mean.
    return mean, over_frames((values - mean.detach()).square())


def row_norms(weights: Tensor) -> Tensor:
    """‖a‖² of every row, shape (batch, heads, frames)."""
    return weights.square().sum(-1)


def bottleneck(norms: Tensor, head_size: int, noise: float, kind: Bottleneck) -> Tensor:
    """Information bottleneck of each frame from ‖a‖² (any shape), in nats.

    paper: eq. 16, which treats a·aᵀ as rank one in d dimensions. exact: the divergence of
    N(0, (‖a‖²+λ²)·I) from N(0, I). mutual-information: ½·d·log(1 + ‖a‖²/λ²).
    """
    d, variance = head_size, norms + noise**2
    if kind == "paper":
        log_noise = 2 * (d - 1) * torch.log(torch.as_tensor(noise, device=norms.device))
        return 0.5 * (norms + noise**2 * d - d - variance.log() - log_noise)
    if kind == "exact":
        return 0.5 * d * (variance - 1 - variance.log())
    return 0.5 * d * information(norms, noise)


def information(norms: Tensor, noise: float) -> Tensor:
    """log(1 + ‖a‖²/λ²): twice the information per feature of the channel, in nats."""
    return torch.log1p(norms / noise**2)


def pearson(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Pearson correlation of matrices (batch, heads, frames, frames) over their valid entries.

    Shape (batch, heads); 0 where either matrix is constant.
    """
    mask = (valid[:, None, :, None] & valid[:, None, None, :]).double()
    count = mask.sum((-1, -2), keepdim=True)

    def centred(matrix: Tensor) -> Tensor:
        mean = (matrix * mask).sum((-1, -2), keepdim=True) / count
        return (matrix - mean) * mask

    a, b = centred(first.double()), centred(second.double())
    scale = a.square().sum((-1, -2)).sqrt() * b.square().sum((-1, -2)).sqrt()
    product = (a * b).sum((-1, -2))
    return torch.where(scale > 1e-12, product / scale.clamp_min(1e-12), 0.0).float()
