"""Bottleneck on what each head gives out: how much of it the task needs, sample by sample.

The model is frozen; a head's output O becomes Z = μ·O + (1 − μ)·ε, with noise ε of the output's own
mean and variance and one μ = sigmoid(α) per head and sample, optimised under task loss + β · KL.
After Jiang et al. 2020 (after Schulz et al. 2020), with heads in the place of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attribution.base import BatchedMethod, BatchSize, Loss, Sample, Session
from hibprune.attribution.batches import CalibrationBatch, Report, score_in_batches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.attribution.noise import SeededNoise
from hibprune.models.attention import AttentionSite, head_places, heads_of, outputs_changed
from hibprune.models.replay import prefix_replayed
from hibprune.records.units import Scores


class HeadOutputBottleneck(BatchedMethod):
    """Information that a head's output keeps when every unit of it costs β, in nats per feature.

    `initial` is the α that all heads start from: 5 lets 99.3 % through, as in the paper.

    On the quickstart with 67 % of the heads removed, β = 0.03, 0.1, 0.3 and 1 keep 75.5, 78.0, 68.5
    and 63.0 % accuracy on the calibration clips; the same number from every layer, 85.5 % with the
    first two. 20 steps at a learning rate of 1 and 80 at 0.2 keep 71.5 and 74.0 %
    (tests/benchmarks/settings_search.py --shares 0.667).
    """

    method: Literal["head-iba"]
    beta: float = Field(default=0.1, ge=0)
    steps: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.5, gt=0)
    initial: float = 5.0
    batch_size: BatchSize = 50

    title: ClassVar[str] = "Information bottleneck on each head's output"
    source: ClassVar[str] = "Jiang et al. 2020 (IBA), on heads in the place of tokens"
    cost: ClassVar[str] = "1 forward + steps × (forward + backward) per sample"

    def attribute(
        self, model: PreTrainedModel, samples: Sequence[Sample], loss: Loss, session: Session
    ) -> Scores:
        def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
            noise = SeededNoise.for_batch(calibration, session.seed)
            return divergence(optimise(self, model, calibration, loss, noise, report))

        # What the first step leaves behind is there throughout the second.
        beginning = self.model_copy(update={"steps": min(2, self.steps)})

        def step(calibration: CalibrationBatch, report: Report) -> None:
            noise = SeededNoise.for_batch(calibration, session.seed)
            optimise(beginning, model, calibration, loss, noise)

        batch_size = within_measured_memory(self, model, session.waiting(samples), step)
        rows = score_in_batches(self, model, samples, score_batch, batch_size, session)
        return self.scores(model, samples, rows)


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
        return noisy(outputs, raw[:, places[site.layer]].sigmoid(), calibration.valid, draws)

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
