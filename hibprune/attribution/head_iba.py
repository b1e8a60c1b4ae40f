"""Bottleneck on what each head gives out: how much of it the task needs, sample by sample.

The model is frozen; a head's output O becomes Z = μ·O + (1 − μ)·ε, with noise ε of the output's own
mean and variance and one μ = sigmoid(α) per head and sample, optimised under task loss + β · KL.
After Jiang et al. 2020 (after Schulz et al. 2020), with heads in the place of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attribution.batches import CalibrationBatch, Report
from hibprune.attribution.fitting import score_by_batch
from hibprune.attribution.methods import HeadOutputBottleneck
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.session import Loss, Sample, Session
from hibprune.models.attention import AttentionSite, head_places, heads_of, outputs_changed
from hibprune.models.replay import prefix_replayed
from hibprune.records.units import Scores


def attribute(
    method: HeadOutputBottleneck,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Score every head of every sample."""

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        noise = SeededNoise.for_batch(calibration, session.seed)
        return divergence(optimise(method, model, calibration, loss, noise, report))

    # What the first step leaves behind is there throughout the second.
    beginning = method.model_copy(update={"steps": min(2, method.steps)})

    def heaviest(calibration: CalibrationBatch, report: Report) -> None:
        noise = SeededNoise.for_batch(calibration, session.seed)
        optimise(beginning, model, calibration, loss, noise)

    return score_by_batch(method, model, samples, session, score_batch, heaviest)


def optimise(
    method: HeadOutputBottleneck,
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    loss: Loss,
    noise: SeededNoise,
    report: Report = lambda share, value: None,
) -> Tensor:
    """Learn α (batch, heads) of every head of every sample at once.

    Each sample minimises its own task loss + β · divergence, averaged over heads as HIB's is. Adam
    works elementwise and the batch's loss is a sum, so a sample's result is what it would be alone
    with the same noise.
    """
    places = head_places(model)
    shape = (len(calibration.batch.ids), len(heads_of(model)))
    raw = torch.full(shape, method.initial, device=calibration.valid.device, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=method.learning_rate)

    def change(site: AttentionSite, outputs: Tensor) -> Tensor:
        draws = noise.values(*outputs.shape[2:]).transpose(1, 2)
        return noisy(
            outputs, raw[:, places[site.stack, site.layer]].sigmoid(), calibration.valid, draws
        )

    with (
        torch.enable_grad(),
        prefix_replayed(model, calibration.prefix),
        outputs_changed(model, change),
    ):
        for step in range(method.steps):
            task_loss = loss(model, calibration.batch)
            total = task_loss + method.beta * divergence(raw).mean(1)
            optimiser.zero_grad()
            total.sum().backward()
            optimiser.step()
            if (step + 1) % 10 == 0:
                report((step + 1) / method.steps, float(total.detach().mean()))
    return raw.detach()


def noisy(outputs: Tensor, share: Tensor, valid: Tensor, draws: Tensor) -> Tensor:
    """Z = μ·O + (1 − μ)·(m + σ·ε) for outputs and draws ε (batch, frames, heads, head size).

    m and σ are those of each head's feature over the sample's valid frames, in this very pass: so
    the noise has the size of what it replaces, also where heads before it are noisy already.
    """
    mask = valid[:, :, None, None].to(outputs.dtype)
    count = mask.sum(1, keepdim=True)
    mean = (outputs * mask).sum(1, keepdim=True) / count
    variance = ((outputs - mean).square() * mask).sum(1, keepdim=True) / count
    # The floor keeps the gradient of the root finite where a feature never varies.
    deviation = variance.clamp_min(1e-12).sqrt()
    kept = share[:, None, :, None]
    return kept * outputs + (1 - kept) * (mean + deviation * draws)


def divergence(raw: Tensor) -> Tensor:
    """KL of N(μ·o + (1 − μ)·m, (1 − μ)²σ²) from N(m, σ²), mean over frames and features, in nats.

    Frame by frame it is ½·[(1 − μ)² + μ²·((o − m)/σ)² − 1] − log(1 − μ). As m and σ are the
    output's own, ((o − m)/σ)² is 1 on average, which leaves −log(1 − μ) − μ·(1 − μ) and no sum.
    Takes α = logit μ of any shape; rises with it, from 0.
    """
    share = raw.sigmoid()
    return functional.softplus(raw) - share * (1 - share)
