"""What inputs are worth: against closed forms, captum, a plain reference, and planted answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from test_hib import samples_of, task_loss
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from hibprune.attribution.base import Sample
from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.noise import SeededNoise
from hibprune.explaining.degradation import SHARES, degraded_answers, summary, tried_layers
from hibprune.explaining.input_attribution import (
    COPIES,
    bottleneck_information,
    chance,
    chosen_beta,
    divergence,
    integrated_gradients,
    occlusion,
)
from hibprune.explaining.removal import Removal, answers
from hibprune.models.attention import frozen, positions_fitted
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.models.source import ModelSource
from hibprune.tasks.text import TextClassification

TASK = TextClassification(kind="text-classification")
TEXT = "the film was great but it was very awful and we saw it"
DECISIVE = 9
"""The place of "awful", which comes after "but"."""


@pytest.fixture(scope="module")
def checkpoint(stand_ins: Callable[[str], Path]) -> Checkpoint:
    root = stand_ins("text_classification")
    return load_checkpoint(ModelSource(source="model"), TASK, root, torch.device("cpu"))


@pytest.fixture
def removal(checkpoint: Checkpoint) -> Removal:
    inputs = checkpoint.inputs(TEXT)
    length = inputs["input_ids"].shape[1]
    sample = Sample("text", inputs, TASK.encode("NEGATIVE", checkpoint.vocabulary))
    return Removal(checkpoint, sample, length, tuple(range(1, length - 1)))


# The bottleneck ------------------------------------------------------------------------------


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    raw, x, mean = (2 * torch.randn(50, generator=generator).double() for _ in range(3))
    deviation = torch.rand(50, generator=generator).double() + 0.1
    share = raw.sigmoid()
    given = Normal(share * x + (1 - share) * mean, (1 - share) * deviation)
    expected = kl_divergence(given, Normal(mean, deviation))
    torch.testing.assert_close(divergence(raw, (x - mean) / deviation), expected)


def test_a_share_near_one_keeps_the_divergence_finite() -> None:
    raw = torch.tensor([40.0, 90.0], requires_grad=True)
    found = divergence(raw, torch.zeros(2))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(raw.grad).all()


def test_beta_weighs_the_start_ten_times_the_loss() -> None:
    mu = 1 / (1 + math.exp(-5))
    start = -math.log(1 - mu) + 0.5 * ((1 - mu) ** 2 + mu**2 - 1)
    assert chosen_beta(0.3) * start == pytest.approx(10 * 0.3)
    assert chosen_beta(0.0) > 0


def plain_bottleneck(removal: Removal, layer: int, beta: float, noise: SeededNoise) -> Tensor:
    """The same as a hook on a layer and whole passes through the model, a copy at a time."""
    model = removal.checkpoint.model
    module = model.distilbert.transformer.layer[layer]
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _m, _i, out: caught.append(out[0].detach()))
    model(**removal.sample.inputs)
    handle.remove()
    states = caught[0]
    mean = states.mean(1, keepdim=True)
    deviation = states.std(1, unbiased=False, keepdim=True)
    raw = torch.full_like(states, 5.0).requires_grad_(True)
    optimiser = torch.optim.Adam([raw], lr=1.0)
    for _ in range(10):
        draws = noise.values(COPIES, states.shape[-1])[0]
        share = raw.sigmoid()
        losses = []
        for copy in range(COPIES):
            noisy = share * states + (1 - share) * (mean + deviation * draws[copy])
            handle = module.register_forward_hook(
                lambda _m, _i, out, noisy=noisy: (noisy, *out[1:])
            )
            logits = model(**removal.sample.inputs).logits
            handle.remove()
            losses.append(-logits.log_softmax(-1)[0, removal.sample.target[0]])
        given = Normal(share * states + (1 - share) * mean, (1 - share) * deviation)
        kept = kl_divergence(given, Normal(mean, deviation))
        optimiser.zero_grad()
        (torch.stack(losses).mean() + beta * kept.mean()).backward()
        optimiser.step()
    share = raw.detach().sigmoid()
    given = Normal(share * states + (1 - share) * mean, (1 - share) * deviation)
    return kl_divergence(given, Normal(mean, deviation))[0].sum(-1)


@pytest.mark.parametrize("layer", [0, 1])
def test_the_bottleneck_is_that_of_a_plain_reference(removal: Removal, layer: int) -> None:
    model = removal.checkpoint.model
    with frozen(model):
        calibration = read_unmodified(model, [removal.sample], attention=False)
        found = bottleneck_information(model, calibration, TASK.loss, layer, 0.05, seed=3)
        noise = SeededNoise.for_batch(calibration, f"3/input-{layer}")
        expected = plain_bottleneck(removal, layer, 0.05, noise)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_the_decisive_word_is_let_through(removal: Removal) -> None:
    model = removal.checkpoint.model
    with frozen(model):
        calibration = read_unmodified(model, [removal.sample], attention=False)
        beta = chosen_beta(float(TASK.loss(model, calibration.batch)))
        found = bottleneck_information(model, calibration, TASK.loss, 0, beta, seed=0)
    assert int(found[1:-1].argmax()) + 1 == DECISIVE


# The others ----------------------------------------------------------------------------------


def test_integrated_gradients_are_captums(removal: Removal) -> None:
    model = removal.checkpoint.model
    baseline = removal.baseline()

    def probability(numbers: Tensor, mask: Tensor) -> Tensor:
        logits = model(input_ids=numbers, attention_mask=mask).logits
        return logits.softmax(-1)[:, removal.sample.target[0]]

    rival = LayerIntegratedGradients(probability, model.distilbert.embeddings)
    expected = rival.attribute(
        removal.sample.inputs["input_ids"],
        baselines=baseline.inputs["input_ids"],
        additional_forward_args=(removal.sample.inputs["attention_mask"],),
        n_steps=20,
        method="riemann_middle",
    )
    with frozen(model):
        calibration = read_unmodified(model, [removal.sample], attention=False)
        found = integrated_gradients(model, calibration, baseline, TASK.loss, "probability", 20)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(found, expected[0].sum(-1).float(), rtol=1e-3, atol=1e-5)


def test_integrated_gradients_add_up_to_what_the_answer_gains(removal: Removal) -> None:
    model = removal.checkpoint.model
    baseline = removal.baseline()
    with frozen(model):
        calibration = read_unmodified(model, [removal.sample], attention=False)
        found = integrated_gradients(model, calibration, baseline, TASK.loss, "probability", 1000)
        whole, empty = answers(model, TASK.loss, [removal.sample, baseline], "probability")
    assert float(found.sum()) == pytest.approx(whole - empty, abs=1e-3)


def test_occlusion_is_what_the_answer_loses_without_a_word(removal: Removal) -> None:
    model, tokenizer = removal.checkpoint.model, removal.checkpoint.preprocessor.part
    with frozen(model):
        found = occlusion(removal, model, TASK.loss, "probability")
    words = TEXT.split()
    assert found[0] == found[-1] == 0
    target = removal.sample.target[0]

    def told(text: str) -> float:
        with torch.no_grad():
            logits = model(**tokenizer([text], return_tensors="pt")).logits
        return float(logits.softmax(-1)[0, target])

    for place in (1, DECISIVE):
        left = " ".join(words[: place - 1] + words[place:])
        assert float(found[place]) == pytest.approx(told(TEXT) - told(left), abs=1e-5)


def test_chance_is_seeded_by_run_and_clip() -> None:
    assert torch.equal(chance(9, 0, "a"), chance(9, 0, "a"))
    assert not torch.equal(chance(9, 0, "a"), chance(9, 0, "b"))
    assert not torch.equal(chance(9, 0, "a"), chance(9, 1, "a"))


# Degradation ---------------------------------------------------------------------------------


def test_what_is_planted_costs_the_answer_most(removal: Removal) -> None:
    """A ranking with the decisive word in front against those with it last."""
    model = removal.checkpoint.model
    planted = torch.zeros(removal.positions)
    planted[DECISIVE] = 1.0
    with frozen(model):
        row = degraded_answers(model, TASK.loss, removal, [planted, -planted])
        gone = answers(model, TASK.loss, [removal.without([DECISIVE])], "probability")[0]
        empty = answers(model, TASK.loss, [removal.without(removal.removable)], "probability")[0]
        loss = TASK.loss(model, read_unmodified(model, [removal.sample], attention=False).batch)
    first, last = row[1 : 1 + len(SHARES)], row[1 + len(SHARES) :]
    assert row[0] == pytest.approx(math.exp(-loss.item()))
    # 5 % of 13 words are one.
    assert first[0] == pytest.approx(gone)
    assert first[0] < 0.5 < 0.9 < last[0]
    assert first[-1] == last[-1] == pytest.approx(empty)


def test_the_summary_by_hand() -> None:
    """Two clips, two rankings: means, the scale of the paper, and drops at 11 %."""
    shares = len(SHARES)
    rows = [
        (1.0, *[0.2] * (shares - 1), 0.1, *[0.9] * (shares - 1), 0.3),
        (0.8, *[0.4] * (shares - 1), 0.1, *[0.7] * (shares - 1), 0.3),
    ]
    found = summary(rows, ("IBA, layer 0", "random"), "silence")
    assert (found.original, found.least) == pytest.approx((0.9, 0.1))
    first, second = found.curves
    assert first.normalised[0] == pytest.approx((0.3 - 0.1) / 0.8)
    assert first.normalised[-1] == pytest.approx(0)
    assert second.normalised[-1] == pytest.approx((0.3 - 0.1) / 0.8)
    assert first.drop.value == pytest.approx((0.8 + 0.4) / 2)
    assert first.beyond_chance is not None
    assert first.beyond_chance.value == pytest.approx((0.7 + 0.3) / 2)
    assert second.beyond_chance is None
    assert first.area < second.area


def test_layers_of_deep_models_are_spaced_evenly() -> None:
    assert tried_layers(4) == (0, 1, 2, 3)
    assert tried_layers(12) == (0, 2, 4, 7, 9, 11)


# Every family --------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
def test_what_a_layer_gives_out_and_takes_in_can_be_replaced_in_every_family(
    row: TinyModel,
) -> None:
    """Integrated gradients add up, and a bottleneck keeps nats at every position."""
    model, sample = row.build(), samples_of(row)[0]
    dull = {
        name: torch.zeros_like(value) if value.is_floating_point() else value
        for name, value in sample.inputs.items()
    }
    if "input_ids" in dull:
        dull["input_ids"] = torch.full_like(dull["input_ids"], 3)
    baseline = Sample("baseline", dull, ())
    with frozen(model), positions_fitted(model, sample.inputs):
        calibration = read_unmodified(model, [sample], attention=False)
        found = integrated_gradients(model, calibration, baseline, task_loss, "log-likelihood", 60)
        whole, empty = (
            -float(task_loss(model, read_unmodified(model, [one], attention=False).batch))
            for one in (sample, replace(sample, inputs=dull))
        )
        own = Sample("own", sample.inputs, ())
        nothing = integrated_gradients(model, calibration, own, task_loss, "log-likelihood", 2)
        kept = bottleneck_information(model, calibration, task_loss, 1, 0.0, seed=0)
    assert len(found) == len(kept) == calibration.batch.frames[0]
    assert float(found.sum()) == pytest.approx(whole - empty, rel=0.05, abs=2e-3)
    assert float(nothing.abs().max()) == 0
    assert torch.isfinite(kept).all()
    assert float(kept.min()) >= 0
