"""Head Information Bottleneck: learn, per sample, the attention that does the task with least of V.

The model is frozen; one matrix A_r per head and sample takes the place of Q·Kᵀ and is optimised
under task loss + β · bottleneck (paper, eq. 6–17, table 1). A head's score is how much the learned
attention resembles its own (the paper's), or how much information it still carries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.batches import (
    CalibrationBatch,
    LengthBatches,
    Report,
    mean_over_frames,
)
from hibprune.attribution.fitting import Step, score_by_batch, within_measured_memory
from hibprune.attribution.hib_settings import HeadInformationBottleneck
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.noisy_channel import (
    activate,
    bottleneck,
    information,
    noisy_mix,
    pearson,
    row_norms,
)
from hibprune.attribution.reduced_precision import products_in
from hibprune.attribution.session import Loss, Row, Sample, Session
from hibprune.attribution.stopping import EVERY, PROBE, Probe
from hibprune.models.attention import (
    AttentionSite,
    attention_sites,
    frozen,
    positions_fitted,
)
from hibprune.models.attention_mixing import attention_replaced
from hibprune.models.replay import prefix_replayed
from hibprune.records.units import Scores

LEAST_ATTENTION = 1e-6
"""Where A_r starts at the model's own attention: weights below have no logarithm to speak of."""


def attribute(
    method: HeadInformationBottleneck,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Learn and score the attention of every head of every sample."""
    if method.steps == "auto":
        return _attribute_until_stable(method, model, samples, loss, session)

    def score_batch(calibration: CalibrationBatch, report: Report) -> Tensor:
        noise = SeededNoise.for_batch(calibration, session.seed)
        learned = optimise(method, model, calibration, loss, noise, report)
        return _scores(method, calibration, learned)

    return score_by_batch(
        method, model, samples, session, score_batch, _heaviest(method, model, loss)
    )


def _attribute_until_stable(
    method: HeadInformationBottleneck,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    steps, done = session.steps, dict(session.done)
    if steps is None:
        # Its rows are needed together at every checkpoint, so that one process has them all.
        if session.processes.leads:
            steps, rows = _probe(method, model, samples[:PROBE], loss, session)
            session.processes.tell((steps, rows))
        else:
            steps, rows = session.processes.hear()
        done = {**rows, **done}
        session.save(done, steps=steps)
    session = replace(session, done=done, save=partial(session.save, steps=steps))
    fixed = method.model_copy(update={"steps": steps, "most_steps": None})
    scores = attribute(fixed, model, samples, loss, session)
    return scores.model_copy(update={"steps": steps})


def _probe(
    method: HeadInformationBottleneck,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> tuple[int, dict[str, Row]]:
    """After how many steps the ranking is stable on these samples, and their rows by then."""
    probe = Probe([sample.id for sample in samples])
    finished = 0

    def work(calibration: CalibrationBatch) -> int:
        ids = calibration.batch.ids
        probe.begin(ids)

        def enough(learned: Mapping[int, Tensor]) -> bool:
            probe.add(ids, _scores(method, calibration, learned))
            return probe.settled() is not None

        def report(share: float, value: float) -> None:
            session.progress(finished + share * len(ids), len(samples), value)

        noise = SeededNoise.for_batch(calibration, session.seed)
        optimise(method, model, calibration, loss, noise, report, enough)
        return len(ids)

    batch_size = within_measured_memory(method, model, samples, _heaviest(method, model, loss))
    batches = LengthBatches(method, model, batch_size, session.notice)
    with frozen(model):
        for _, number in batches.each(samples, work):
            finished += number
    checkpoint = probe.settled() or math.ceil(method.limit / EVERY)
    return min(checkpoint * EVERY, method.limit), probe.rows_at(checkpoint)


def _heaviest(method: HeadInformationBottleneck, model: PreTrainedModel, loss: Loss) -> Step:
    """As much of the work on a batch as takes the most memory."""
    # Adam's moments and the gradient are there throughout the second step.
    beginning = method.model_copy(update={"steps": min(2, method.limit)})

    def step(calibration: CalibrationBatch, report: Report) -> None:
        noise = SeededNoise.for_batch(calibration, 0)
        _scores(method, calibration, optimise(beginning, model, calibration, loss, noise))

    return step


def _scores(
    method: HeadInformationBottleneck, calibration: CalibrationBatch, learned: Mapping[int, Tensor]
) -> Tensor:
    strength = method.noise
    assert strength is not None
    if method.score == "similarity":
        per_layer = [
            pearson(learned[layer], original, calibration.valid)
            for layer, original in calibration.attention.items()
        ]
    else:
        per_layer = [
            mean_over_frames(information(row_norms(weights), strength), calibration.valid)
            for weights in learned.values()
        ]
    return torch.cat(per_layer, dim=1)


def optimise(
    method: HeadInformationBottleneck,
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    loss: Loss,
    noise: SeededNoise,
    report: Report = lambda share, value: None,
    enough: Callable[[Mapping[int, Tensor]], bool] | None = None,
) -> dict[int, Tensor]:
    """Learn A_HIB (batch, heads, frames, frames) for every layer of every sample at once.

    Each sample minimises its own task loss + β · bottleneck. Adam works elementwise and the batch's
    loss is a sum, so a sample's result is what it would be alone with the same noise. `enough` is
    shown what has been learned at every checkpoint, and says whether to stop there.
    """
    assert method.beta is not None
    sites = [site for site in attention_sites(model) if site.heads]
    raw = {site.layer: starting_point(method, site, calibration, noise) for site in sites}
    head_count = sum(len(site.heads) for site in sites)
    optimiser = torch.optim.Adam(raw.values(), lr=method.learning_rate, fused=True)
    bottlenecks: list[Tensor] = []
    kind, strength = method.bottleneck, method.noise
    assert kind is not None
    assert strength is not None
    reduced = method.precision == "bfloat16"
    valid = calibration.valid if len(set(calibration.batch.frames)) > 1 else None

    def mix(layer: int, values: Tensor) -> Tensor:
        weights = activate(raw[layer], valid, method.activation)
        per_frame = bottleneck(row_norms(weights), values.shape[-1], strength, kind)
        bottlenecks.append(mean_over_frames(per_frame, valid).sum(1))
        draws = noise.values(values.shape[1], values.shape[3])
        return noisy_mix(weights, values, valid, strength, draws, method.activation)

    def learned() -> dict[int, Tensor]:
        return {
            layer: activate(matrix.detach(), valid, method.activation)
            for layer, matrix in raw.items()
        }

    with (
        torch.enable_grad(),
        positions_fitted(model, calibration.batch.inputs),
        prefix_replayed(model, calibration.prefix),
        attention_replaced(model, mix),
        products_in(model, method.precision),
    ):
        for step in range(1, method.limit + 1):
            bottlenecks.clear()
            with torch.autocast(calibration.valid.device.type, torch.bfloat16, enabled=reduced):
                task_loss = loss(model, calibration.batch)
            total = task_loss + method.beta * torch.stack(bottlenecks).sum(0) / head_count
            optimiser.zero_grad()
            total.sum().backward()
            optimiser.step()
            if step % EVERY == 0 or step == method.limit:
                report(step / method.limit, float(total.detach().mean()))
                if enough is not None and enough(learned()):
                    break
    return learned()


def starting_point(
    method: HeadInformationBottleneck,
    site: AttentionSite,
    calibration: CalibrationBatch,
    noise: SeededNoise,
) -> Tensor:
    """A_r of a layer (batch, heads, frames, frames) before the first step."""
    if method.start != "attention":
        return (method.initial_scale * noise.attention(len(site.heads))).requires_grad_(True)
    # What `activate` turns back into the model's own attention.
    own = calibration.attention[site.layer].float().clamp(LEAST_ATTENTION, 1 - LEAST_ATTENTION)
    inverse = own.logit() if method.activation == "sigmoid" else own.log()
    return inverse.requires_grad_(True)
