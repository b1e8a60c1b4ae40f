"""Hard-concrete gates: which heads are still open once each open head has its price.

One gate per head, the same for all samples, is trained under the task loss and a penalty on the
expected number of open gates (Louizos et al. 2018; Voita et al. 2019). The model is frozen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.batches import CalibrationBatch, LengthBatches
from hibprune.attribution.fitting import within_measured_memory
from hibprune.attribution.methods import HardConcreteGates
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.session import Loss, Sample, Session, scores_of
from hibprune.models.attention import AttentionSite, frozen, head_places, heads_of, outputs_changed
from hibprune.models.replay import prefix_replayed
from hibprune.records.units import Scores, Training

LEAST_CHANCE = 1e-6
"""Uniform draws are kept this far from 0 and 1, where their logit is infinite."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What Adam keeps of the gradients, in its own words."""


@dataclass(frozen=True)
class Trained:
    """What training has come to: log α (heads,), and the model whose heads they are.

    The model is a copy where its weights were trained, too.
    """

    log_alpha: Tensor
    model: PreTrainedModel


def attribute(
    method: HardConcreteGates,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Scores:
    """Train a gate for every head, all samples together."""
    with frozen(model):
        log_alpha = train(method, model, samples, loss, session).log_alpha
    # In single precision, gates would be level from log α = 15 on.
    chances = open_probability(method, log_alpha.double())
    return scores_of(method, model, samples, [tuple(chances.tolist())])


def train(
    method: HardConcreteGates,
    model: PreTrainedModel,
    samples: Sequence[Sample],
    loss: Loss,
    session: Session,
) -> Trained:
    """Learn log α (heads,) under mean task loss + λ · expected number of open gates.

    Gradients are summed over the batches of a step, and draws depend on step and sample alone: how
    the samples of a step are split into batches changes nothing.
    """
    moves = method.train == "model"
    subject = copy.deepcopy(model) if moves else model
    places = head_places(subject, method.stacks)
    device = next(subject.parameters()).device
    count = len(heads_of(subject, method.stacks))
    log_alpha = torch.full((count,), method.initial, device=device)
    groups: list[dict[str, Any]] = [{"params": [log_alpha], "lr": method.learning_rate}]
    if moves:
        groups.append(
            {"params": list(subject.parameters()), "lr": method.weights_learning_rate},
        )
    learned: list[Tensor] = [tensor for group in groups for tensor in group["params"]]
    for tensor in learned:
        tensor.requires_grad_(True)
    optimiser = torch.optim.Adam(groups)
    before = session.training
    done = _take_up(before, log_alpha, optimiser) if before and _fits(before, log_alpha) else 0

    def descend(
        calibration: CalibrationBatch, step: int
    ) -> tuple[float, tuple[Tensor | None, ...]]:
        noise = SeededNoise.for_batch(calibration, f"{session.seed}/{step}")
        gates = hard_concrete(method, log_alpha, noise.uniform(len(log_alpha)))

        def change(site: AttentionSite, outputs: Tensor) -> Tensor:
            return outputs * gates[:, None, places[site.stack, site.layer], None]

        with (
            prefix_replayed(subject, calibration.prefix),
            outputs_changed(subject, change, method.stacks),
        ):
            total = loss(subject, calibration.batch).sum()
        # Unused: what lies in front of the first attention is replayed, not computed.
        return float(total.detach()), torch.autograd.grad(total, learned, allow_unused=True)

    batch_size = within_measured_memory(
        method, subject, samples, lambda calibration, report: descend(calibration, done)
    )
    batches = LengthBatches(method, subject, batch_size, session.notice, keep=True)
    steps = islice(_shuffled(samples, method, session), done, method.steps)
    for step, drawn in enumerate(steps, start=done):
        optimiser.zero_grad()
        with torch.enable_grad():
            (method.penalty * open_probability(method, log_alpha).sum()).backward()
            task_loss = 0.0
            for _, (value, gradients) in batches.each(drawn, partial(descend, step=step)):
                task_loss += value / len(drawn)
                for tensor, gradient in zip(learned, gradients, strict=True):
                    if gradient is not None:
                        share = gradient / len(drawn)
                        tensor.grad = share if tensor.grad is None else tensor.grad + share
        optimiser.step()
        if not moves:
            session.save({}, training=_so_far(method, log_alpha, optimiser))
        session.progress((step + 1) / method.steps * len(samples), len(samples), task_loss)
    if moves:
        subject.requires_grad_(False)
    return Trained(log_alpha.detach(), subject)


def _so_far(method: HardConcreteGates, log_alpha: Tensor, optimiser: torch.optim.Adam) -> Training:
    """All that a training with a frozen model has changed."""
    adam = optimiser.state[log_alpha]
    steps = int(adam["step"])
    vectors = {"log_alpha": log_alpha.detach(), **{name: adam[name] for name in MOMENTS}}
    return Training(
        steps=steps,
        share=steps / method.steps,
        state={name: tuple(vector.tolist()) for name, vector in vectors.items()},
    )


def _fits(training: Training, log_alpha: Tensor) -> bool:
    """Whether it is one of as many gates; what is kept in a file may have been changed there."""
    named = training.state.keys() == {"log_alpha", *MOMENTS}
    return named and all(len(row) == len(log_alpha) for row in training.state.values())


def _take_up(training: Training, log_alpha: Tensor, optimiser: torch.optim.Adam) -> int:
    """Put back what had been learned; returns the steps that took."""
    kept = {name: torch.tensor(row).to(log_alpha) for name, row in training.state.items()}
    with torch.no_grad():
        log_alpha.copy_(kept["log_alpha"])
    steps = torch.tensor(float(training.steps))
    optimiser.state[log_alpha] = {"step": steps, **{name: kept[name] for name in MOMENTS}}
    return training.steps


def _shuffled(
    samples: Sequence[Sample], method: HardConcreteGates, session: Session
) -> Iterator[list[Sample]]:
    """The samples of each step: all of them in a new order before any of them comes again."""
    generator = np.random.default_rng(session.seed)
    while True:
        order = generator.permutation(len(samples))
        for start in range(0, len(samples), method.samples_per_step):
            yield [samples[place] for place in order[start : start + method.samples_per_step]]


def hard_concrete(method: HardConcreteGates, log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Gates in [0, 1] from uniform draws (…, heads): Louizos et al. 2018, eq. 10 and 11."""
    logistic = torch.logit(uniform, eps=LEAST_CHANCE)
    concrete = ((logistic + log_alpha) / method.temperature).sigmoid()
    low, high = method.stretch_low, method.stretch_high
    return (concrete * (high - low) + low).clamp(0, 1)


def usual_gates(method: HardConcreteGates, log_alpha: Tensor) -> Tensor:
    """The gates of a trained model in use, where nothing is drawn: Louizos et al. 2018, eq. 13."""
    low, high = method.stretch_low, method.stretch_high
    return (log_alpha.sigmoid() * (high - low) + low).clamp(0, 1)


def open_probability(method: HardConcreteGates, log_alpha: Tensor) -> Tensor:
    """P(gate ≠ 0) of each gate: Louizos et al. 2018, eq. 12."""
    closed = method.temperature * math.log(-method.stretch_low / method.stretch_high)
    return (log_alpha - closed).sigmoid()
