"""How much each frame or token of an input is worth to the model's answer, by four methods.

Information bottleneck for attribution after Jiang et al. 2020 (after Schulz et al. 2020),
integrated gradients (Sundararajan et al. 2017), occlusion, and chance. All of them return a number
for every position of the encoder's attention, higher where the answer needs it more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.attribution.base import Loss, Sample
from hibprune.attribution.batches import CalibrationBatch, read_unmodified
from hibprune.attribution.methods import Answer
from hibprune.attribution.noise import SeededNoise
from hibprune.execution.files import digest
from hibprune.explaining.removal import Removal, answers
from hibprune.models.attention import positions_fitted, run_encoder
from hibprune.models.layerwise import encoder_layers, name_of_states
from hibprune.models.replay import (
    layers_recorded,
    layers_repeated,
    layers_replayed,
    prefix_replayed,
)

COPIES, STEPS, LEARNING_RATE, INITIAL = 10, 10, 1.0, 5.0
"""Appendix D of Jiang et al.: draws of noise at once, steps, Adam's rate, α at the start."""
WEIGHT = 10.0
"""β is chosen so that the bottleneck's term begins at so many times the loss (appendix D)."""
SMALLEST_LOSS = 1e-6
GRADIENT_STEPS = 20
AT_ONCE = 10
PIECES = 64
"""Of a long clip that are occluded one by one."""


def chosen_beta(loss: float) -> float:
    """β for a loss: 10 · loss / KL, with the KL that a bottleneck starts from."""
    start = float(start_divergence())
    return WEIGHT * max(loss, SMALLEST_LOSS) / start


def start_divergence() -> Tensor:
    """Mean KL before the first step, of states whose mean and variance are the noise's own."""
    raw = torch.tensor(INITIAL, dtype=torch.float64)
    return divergence(raw, torch.ones_like(raw))


def divergence(raw: Tensor, standard: Tensor) -> Tensor:
    """KL of N(μ·x + (1 − μ)·m, (1 − μ)²σ²) from N(m, σ²) at μ = sigmoid(raw), elementwise, in nats.

    `standard` is (x − m)/σ: ½·[(1 − μ)² + μ²·((x − m)/σ)² − 1] − log(1 − μ).
    """
    share = raw.sigmoid()
    return functional.softplus(raw) + 0.5 * (
        (1 - share).square() + share.square() * standard.square() - 1
    )


def bottleneck_information(
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    loss: Loss,
    layer: int,
    beta: float,
    seed: int,
) -> Tensor:
    """Nats that each position (positions,) keeps of a layer's output when every nat costs β.

    T = μ·X + (1 − μ)·ε with noise of X's own mean and variance over the input's positions; one μ a
    position and feature, learnt under task loss + β · mean KL with ten draws of noise in a step.
    One sample, within `frozen` and `positions_fitted`.
    """
    noise = SeededNoise.for_batch(calibration, f"{seed}/input-{layer}")
    repeated = calibration.repeated(COPIES)
    recorded = _recorded(model, calibration, loss)
    below = layers_repeated(recorded, 1, COPIES)
    states = _states(recorded[layer]).detach()
    mean = states.mean(1, keepdim=True)
    deviation = states.var(1, unbiased=False, keepdim=True).clamp_min(1e-12).sqrt()
    standard = (states - mean) / deviation
    raw = torch.full_like(states, INITIAL).requires_grad_(True)
    optimiser = torch.optim.Adam([raw], lr=LEARNING_RATE)
    with torch.enable_grad(), prefix_replayed(model, repeated.prefix):
        for _ in range(STEPS):
            share = raw.sigmoid()
            draws = noise.values(COPIES, states.shape[-1])[0]
            noisy = share * states + (1 - share) * (mean + deviation * draws)
            given = {**below, layer: _with_states(below[layer], noisy)}
            with layers_replayed(model, given, layer + 1):
                task_loss = loss(model, repeated.batch).mean()
            total = task_loss + beta * divergence(raw, standard).mean()
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
    return divergence(raw.detach(), standard)[0].sum(-1)


def _recorded(
    model: PreTrainedModel, calibration: CalibrationBatch, loss: Loss
) -> dict[int, object]:
    """What the layers give out for a batch."""
    with (
        torch.no_grad(),
        prefix_replayed(model, calibration.prefix),
        layers_recorded(model) as recorded,
    ):
        loss(model, calibration.batch)
    return recorded


def _states(outputs: object) -> Tensor:
    states = outputs[0] if isinstance(outputs, tuple) else outputs
    assert isinstance(states, Tensor)
    return states


def _with_states(outputs: object, states: Tensor) -> object:
    return (states, *outputs[1:]) if isinstance(outputs, tuple) else states


def integrated_gradients(
    model: PreTrainedModel,
    calibration: CalibrationBatch,
    baseline: Sample,
    loss: Loss,
    answer: Answer,
    steps: int = GRADIENT_STEPS,
) -> Tensor:
    """Integrated gradients of the answer along what goes into the first layer: (positions,).

    From the states of `baseline`, where all is removed, to the sample's own, by the midpoints of
    equal steps; summed over features, so that all positions add up to the difference of the answers
    but for the steps' error. One sample, within `frozen` and `positions_fitted`.
    """
    own = _encoder_input(model, calibration.batch.inputs)
    empty = _encoder_input(model, baseline.inputs)
    difference = own - empty
    points = (torch.arange(steps, device=own.device) + 0.5) / steps
    total = torch.zeros_like(own)
    for scales in points.split(AT_ONCE):
        repeated = calibration.repeated(len(scales))
        states = (empty + scales[:, None, None] * difference).requires_grad_(True)
        with (
            torch.enable_grad(),
            prefix_replayed(model, repeated.prefix),
            _encoder_input_replaced(model, states),
        ):
            losses = loss(model, repeated.batch)
            told = (-losses).exp() if answer == "probability" else -losses
            (gradient,) = torch.autograd.grad(told.sum(), states)
        total += gradient.sum(0, keepdim=True)
    return (difference * total / steps)[0].sum(-1).detach()


def _encoder_input(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """What goes into the encoder's first layer: (1, positions, width)."""
    caught: list[Tensor] = []

    def keep(_module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        caught.append((given[0] if given else named[name_of_states(named)]).detach())

    handle = encoder_layers(model)[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            run_encoder(model, inputs)
    finally:
        handle.remove()
    return caught[0]


@contextmanager
def _encoder_input_replaced(model: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """Let some states go into the encoder's first layer."""

    def replace(
        _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (states, *given[1:]), named
        return given, {**named, name_of_states(named): states}

    handle = encoder_layers(model)[0].register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def occlusion(removal: Removal, model: PreTrainedModel, loss: Loss, answer: Answer) -> Tensor:
    """How much the answer drops when a position alone is removed: (positions,).

    Of long clips, pieces of several positions at a time. Within `frozen`.
    """
    pieces = [piece for piece in torch.tensor(removal.removable).tensor_split(PIECES) if len(piece)]
    whole, *without = answers(
        model, loss, [removal.without(()), *(removal.without(piece.tolist()) for piece in pieces)],
        answer,
    )  # fmt: skip
    scores = torch.zeros(removal.positions)
    for piece, left in zip(pieces, without, strict=True):
        scores[piece] = whole - left
    return scores


def chance(positions: int, seed: int, name: str) -> Tensor:
    """A seeded number for each position, whatever the model."""
    generator = torch.Generator().manual_seed(int(digest(str(seed), name)[:12], 16))
    return torch.rand(positions, generator=generator)


def attributed_inputs(
    model: PreTrainedModel,
    removal: Removal,
    loss: Loss,
    answer: Answer,
    layers: Sequence[int],
    beta: float,
    seed: int,
) -> dict[str, Tensor]:
    """Scores (positions,) of an input by all methods: IBA at each of some layers, and the others.

    Within `frozen`.
    """
    sample = removal.sample
    found: dict[str, Tensor] = {}
    with positions_fitted(model, sample.inputs):
        calibration = read_unmodified(model, [sample], attention=False)
        for layer in layers:
            found[layer_name(layer)] = bottleneck_information(
                model, calibration, loss, layer, beta, seed
            ).cpu()
        baseline = removal.baseline()
        found["integrated gradients"] = integrated_gradients(
            model, calibration, baseline, loss, answer
        ).cpu()
    found["occlusion"] = occlusion(removal, model, loss, answer)
    found["random"] = chance(removal.positions, seed, sample.id)
    return found


def layer_name(layer: int) -> str:
    """What IBA at a layer's output is called."""
    return f"IBA, layer {layer}"
