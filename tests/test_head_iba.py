"""The bottleneck on head outputs: against closed forms and a plain reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hib_reference import agreed_generator
from test_hib import LENGTHS, samples_of, task_loss, tiny
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from transformers import PreTrainedModel

from hibprune.attribution import MethodBase
from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.head_iba import divergence, noisy, optimise
from hibprune.attribution.methods import HeadOutputBottleneck
from hibprune.attribution.noise import SeededNoise
from hibprune.attribution.session import Loss, Sample, Session
from hibprune.models.attention import attention_sites, frozen, heads_of, positions_fitted
from hibprune.records.units import Head
from hibprune.tasks import Batch

STEPS = 6
START = {"beta": 0.001, "initial": 0.5, "learning_rate": 0.3, "steps": STEPS}
"""Where both terms of the loss pull at α; from 5 on it would only fall, step by step, at first."""


def method(**fields: Any) -> HeadOutputBottleneck:
    return HeadOutputBottleneck(method="head-iba", **{**START, **fields})


# What both methods on head outputs are held to -------------------------------------------------


@contextmanager
def outputs_hooked(
    model: PreTrainedModel, replace: Callable[[int, Tensor], Tensor]
) -> Iterator[None]:
    """Each head's output (frames, head size) of a single clip, by its place, through `replace`."""
    handles = []
    place = 0
    for site in attention_sites(model):

        def hook(
            _m: Any, inputs: tuple[Tensor, ...], first: int = place, size: int = site.head_size
        ) -> tuple[Tensor, ...]:
            parts = inputs[0][0].split(size, dim=-1)
            changed = [replace(first + number, part) for number, part in enumerate(parts)]
            return (torch.cat(changed, dim=-1)[None], *inputs[1:])

        handles.append(site.output.register_forward_pre_hook(hook))
        place += len(site.heads)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_useless_heads(row: TinyModel, needed: set[Head]) -> PreTrainedModel:
    """A model that reads only what a few of its heads give out."""
    model = row.build()
    for site in attention_sites(model):
        with torch.no_grad():
            for place, head in enumerate(site.heads):
                if head not in needed:
                    columns = slice(place * site.head_size, (place + 1) * site.head_size)
                    site.output.get_parameter("weight")[:, columns] = 0
    return model


def distance_from(model: PreTrainedModel, samples: list[Sample]) -> Loss:
    """A loss that grows with every change of the logits, so that every head with effect matters."""
    with torch.no_grad():
        logits = {one.id: model(**one.inputs).logits[0] for one in samples}

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        expected = torch.stack([logits[sample] for sample in batch.ids])
        return 100 * (
            model(**batch.inputs).logits / expected.std() - expected / expected.std()
        ).square().mean(1)

    return loss


def left_as_found(model: PreTrainedModel) -> tuple[Any, ...]:
    """Whatever a method might leave behind in a model."""
    return (
        {name: (weight.clone(), weight.requires_grad) for name, weight in named(model)},
        [(module.training, sorted(vars(module))) for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        model.config.to_dict(),
        model.config._attn_implementation,
    )


def named(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return list(model.named_parameters())


def assert_left_as_found(model: PreTrainedModel, before: tuple[Any, ...]) -> None:
    weights, *rest = left_as_found(model)
    assert rest == list(before[1:])
    assert weights.keys() == before[0].keys()
    for name, (weight, trainable) in weights.items():
        assert torch.equal(weight, before[0][name][0]), name
        assert trainable == before[0][name][1], name


def assert_survives_interruption(settings: MethodBase) -> None:
    """Stopped in the second batch or step, the model is what it was; and so after a whole run."""
    row = tiny("wavlm")
    model, samples = row.build().train(), samples_of(row)
    model.get_parameter(named(model)[0][0]).requires_grad_(False)
    before = left_as_found(model)
    for error in (KeyboardInterrupt, RuntimeError):
        calls = []

        def stopping(
            model: Any, batch: Batch, error: type[BaseException] = error, calls: list[int] = calls
        ) -> Tensor:
            calls.append(1)
            if len(calls) > 3:
                raise error("stopped")
            return task_loss(model, batch)

        with pytest.raises(error, match="stopped"):
            settings.attribute(model, samples, stopping, Session())
        assert_left_as_found(model, before)
    settings.attribute(model, samples, task_loss, Session())
    assert_left_as_found(model, before)


# Formulas --------------------------------------------------------------------------------------


def outputs_and_moments(frames: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = 2 + 3 * torch.randn(frames, 5, generator=generator).exp()
    return outputs, outputs.mean(0), outputs.std(0, unbiased=False)


@pytest.mark.parametrize("raw", [-6.0, -1.0, 0.0, 0.7, 5.0])
def test_divergence_is_torchs_mean_over_frames_and_features(raw: float) -> None:
    outputs, mean, deviation = outputs_and_moments()
    share = torch.tensor(raw).sigmoid()
    channel = Normal(share * outputs + (1 - share) * mean, (1 - share) * deviation)
    expected = kl_divergence(channel, Normal(mean, deviation)).mean()
    assert float(divergence(torch.tensor(raw))) == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("raw", [-1.0, 0.7, 2.0])
def test_divergence_is_what_draws_of_the_noisy_outputs_come_to(raw: float) -> None:
    """Monte Carlo: mean of log p(z|o) − log q(z) over z as the method makes them."""
    outputs, mean, deviation = outputs_and_moments()
    frames, features = outputs.shape
    share = torch.tensor(raw).sigmoid()
    repeats = 2000
    draws = torch.randn(repeats, frames, 1, features, generator=torch.Generator().manual_seed(1))
    z = noisy(
        outputs[None, :, None].expand_as(draws),
        share.expand(repeats, 1),
        torch.ones(repeats, frames, dtype=torch.bool),
        draws,
    )[:, :, 0]
    channel = Normal(share * outputs + (1 - share) * mean, (1 - share) * deviation)
    ratios = channel.log_prob(z) - Normal(mean, deviation).log_prob(z)
    error = float(ratios.mean((1, 2)).std() / repeats**0.5)
    assert abs(float(ratios.mean()) - float(divergence(torch.tensor(raw)))) < 4 * error
    assert error < 0.01


def test_nothing_kept_costs_nothing_and_more_costs_more() -> None:
    raw = torch.linspace(-8, 8, 200)
    costs = divergence(raw)
    assert (costs.diff() > 0).all()
    assert 0 <= float(costs[0]) < 1e-5


def test_noise_has_the_moments_of_the_valid_frames() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(1, 6, 2, 3) * 4 + 1
    valid = torch.tensor([[True] * 4 + [False] * 2])
    draws = torch.randn(1, 6, 2, 3)
    share = torch.tensor([[0.0, 0.25]])
    got = noisy(outputs, share, valid, draws)[0, :4].numpy()
    real = outputs[0, :4].numpy()
    noise = real.mean(0) + real.std(0) * draws[0, :4].numpy()
    for head, kept in enumerate((0.0, 0.25)):
        expected = kept * real[:, head] + (1 - kept) * noise[:, head]
        np.testing.assert_allclose(got[:, head], expected, atol=1e-5)


# The engine ------------------------------------------------------------------------------------


def reference_raw(model: PreTrainedModel, sample: Sample, seed: int) -> Tensor:
    """α of one sample: the whole model each step, the divergence frame by frame from torch."""
    sites = attention_sites(model)
    heads = sum(len(site.heads) for site in sites)
    raw = torch.full((heads,), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=0.3)
    generator = agreed_generator(seed, sample.id)
    for _ in range(STEPS):
        terms: list[Tensor] = []
        drawn: dict[int, Tensor] = {}

        def replace(
            place: int,
            output: Tensor,
            terms: list[Tensor] = terms,
            drawn: dict[int, Tensor] = drawn,
        ) -> Tensor:
            # Drawn for the heads of a layer together.
            if place not in drawn:
                count = len(sites[0].heads)
                layer = torch.randn(count, *output.shape, generator=generator)
                drawn.update({place + number: part for number, part in enumerate(layer)})
            share = raw[place].sigmoid()
            mean, deviation = output.mean(0), output.std(0, unbiased=False)
            prior = Normal(mean, deviation)
            channel = Normal(share * output + (1 - share) * mean, (1 - share) * deviation)
            terms.append(kl_divergence(channel, prior).mean())
            return channel.mean + channel.stddev * drawn[place]

        with outputs_hooked(model, replace), positions_fitted(model, sample.inputs):
            task = task_loss(model, Batch((sample.id,), sample.inputs, (sample.target,), ()))[0]
        optimiser.zero_grad()
        (task + 0.001 * torch.stack(terms).mean()).backward()
        optimiser.step()
    return raw.detach()


@pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
def test_a_padded_batch_learns_what_the_plain_reference_does(row: TinyModel) -> None:
    model = row.build()
    samples = samples_of(row, (0.08, 0.08, 0.08) if row.equal_lengths else LENGTHS)
    settings = method()
    with frozen(model):
        calibration = read_unmodified(model, samples, attention=False)
        noise = SeededNoise.for_batch(calibration, seed=5)
        with positions_fitted(model, samples[0].inputs):
            learned = optimise(settings, model, calibration, task_loss, noise)
        for got, sample in zip(learned, samples, strict=True):
            expected = reference_raw(model, sample, 5)
            assert torch.allclose(got, expected, atol=2e-3)
            # A reference that never moved would agree with anything that never moved.
            assert (expected - 0.5).abs().max() > 0.1
            assert expected.std() > 0.01


def test_batches_change_nothing_and_seeds_do() -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, (0.08, 0.1, 0.09, 0.08, 0.085))
    alone = method(batch_size=1).attribute(model, samples, task_loss, Session(seed=3))
    together = method(batch_size=5).attribute(model, samples, task_loss, Session(seed=3))
    assert np.allclose(alone.per_sample, together.per_sample, atol=1e-3)
    assert method(batch_size=5).attribute(model, samples, task_loss, Session(seed=3)) == together
    other = method(batch_size=5).attribute(model, samples, task_loss, Session(seed=4))
    assert not np.allclose(other.per_sample, together.per_sample, atol=1e-3)


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "ast", "bert"])
def test_heads_that_are_needed_keep_more_than_heads_that_are_not(name: str) -> None:
    needed = {Head(0, 1), Head(1, 2)}
    row = tiny(name)
    model = with_useless_heads(row, needed)
    samples = samples_of(row)
    settings = method(steps=40)
    loss = distance_from(model, samples)
    values = settings.attribute(model, samples, loss, Session()).values
    ranking = sorted(values, key=values.__getitem__, reverse=True)
    assert set(ranking[:2]) == needed
    # Useless heads feel the price alone, which is the same for all of them.
    useless = [values[head] for head in ranking[2:]]
    assert max(useless) == pytest.approx(min(useless), abs=1e-5)


def test_pruned_heads_are_neither_scored_nor_missed() -> None:
    row = tiny("wavlm")
    model = row.build()
    model.prune_heads({0: [0, 1, 2, 3], 1: [1]})
    scores = method().attribute(model, samples_of(row), task_loss, Session())
    assert scores.heads == heads_of(model)
    assert len(scores.per_sample[0]) == 3
    assert np.isfinite(scores.per_sample).all()


def test_the_model_is_left_as_found() -> None:
    assert_survives_interruption(method(batch_size=2))
