"""Hard-concrete gates: against closed forms, draws, a plain reference and planted heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hib_reference import agreed_generator
from standin import CALIBRATION_CLIPS
from test_head_iba import (
    assert_survives_interruption,
    distance_from,
    outputs_hooked,
    with_useless_heads,
)
from test_hib import LENGTHS, samples_of, task_loss, tiny
from test_rounds import model_and_samples
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor
from transformers import PreTrainedModel

import hibprune.attribution.gates
from hibprune.attribution import MethodBase
from hibprune.attribution.gates import hard_concrete, open_probability, train, usual_gates
from hibprune.attribution.methods import HardConcreteGates, HeadOutputBottleneck
from hibprune.attribution.session import Sample, Session
from hibprune.cli import main
from hibprune.errors import UserError
from hibprune.models.attention import frozen, heads_of, positions_fitted
from hibprune.recipe import load_recipe
from hibprune.records.units import Head, Training
from hibprune.tasks import Batch

STEPS = 4


def method(**fields: Any) -> HardConcreteGates:
    return HardConcreteGates(method="gates", **{"steps": STEPS, "samples_per_step": 2, **fields})


# The distribution ------------------------------------------------------------------------------

LOG_ALPHA = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
SHAPES = [{}, {"temperature": 0.33}, {"stretch_low": -0.5, "stretch_high": 1.3}]


@pytest.mark.parametrize("shape", SHAPES)
def test_open_probability_is_the_share_of_draws_above_zero(shape: dict[str, float]) -> None:
    settings = method(**shape)
    draws = 40_000
    uniform = torch.rand(draws, 5, generator=torch.Generator().manual_seed(0))
    gates = hard_concrete(settings, LOG_ALPHA, uniform)
    expected = open_probability(settings, LOG_ALPHA)
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((gates > 0).float().mean(0) - expected).abs().div(error).max() < 4
    assert 0.01 < expected.min() < expected.max() < 0.999
    assert gates.min() == 0
    assert gates.max() == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_follow_the_binary_concrete_distribution(shape: dict[str, float]) -> None:
    """Between its ends the gate is torch's relaxed Bernoulli, stretched."""
    settings = method(**shape)
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    got = hard_concrete(settings, torch.tensor([0.5]), uniform).flatten()
    torch.manual_seed(1)
    relaxed = torch.distributions.RelaxedBernoulli(
        torch.tensor(settings.temperature), logits=torch.tensor(0.5)
    ).sample((200_000,))
    low, high = settings.stretch_low, settings.stretch_high
    stretched = (low + relaxed * (high - low)).clamp(0, 1)
    points = torch.linspace(0.0, 0.99, 12)
    shares = [(draws[:, None] <= points).float().mean(0) for draws in (got, stretched)]
    assert (shares[0] - shares[1]).abs().max() < 0.006
    assert shares[0].diff().min() > 0.001


def test_gates_wide_open_are_still_told_apart() -> None:
    log_alpha = torch.tensor([15.0, 16.0, 20.0, 21.0, 30.0])
    assert (open_probability(method(), log_alpha).diff() == 0).any()
    assert (open_probability(method(), log_alpha.double()).diff() > 0).all()
    # What the method gives out is in double precision.
    model, samples = tiny("wavlm").build(), samples_of(tiny("wavlm"))
    with frozen(model):
        learned = train(method(), model, samples, task_loss, Session()).log_alpha.double().numpy()
    expected = 1 / (1 + np.exp(-(learned - 2 / 3 * np.log(0.1 / 1.1))))
    got = method().attribute(model, samples, task_loss, Session()).per_sample[0]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


# Training --------------------------------------------------------------------------------------


def reference_log_alpha(
    model: PreTrainedModel, samples: list[Sample], order: list[list[int]], penalty: float
) -> Tensor:
    """One clip at a time through the whole model; formulas as Louizos et al. 2018 print them."""
    beta, gamma, zeta = 2 / 3, -0.1, 1.1
    log_alpha = torch.full((len(heads_of(model)),), 2.0, requires_grad=True)
    optimiser = torch.optim.Adam([log_alpha], lr=0.1)
    for step, places in enumerate(order):
        losses = []
        for sample in (samples[place] for place in places):
            u = torch.rand(len(log_alpha), generator=agreed_generator(f"7/{step}", sample.id))
            s = torch.sigmoid((torch.log(u) - torch.log(1 - u) + log_alpha) / beta)
            z = torch.clamp(s * (zeta - gamma) + gamma, 0, 1)
            with (
                outputs_hooked(model, lambda place, output, z=z: output * z[place]),  # type: ignore[misc]
                positions_fitted(model, sample.inputs),
            ):
                batch = Batch((sample.id,), sample.inputs, (sample.target,), ())
                losses.append(task_loss(model, batch)[0])
        expected_l0 = torch.sigmoid(log_alpha - beta * np.log(-gamma / zeta)).sum()
        optimiser.zero_grad()
        (torch.stack(losses).mean() + penalty * expected_l0).backward()
        optimiser.step()
    return log_alpha.detach()


@pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
def test_padded_batches_learn_what_the_plain_reference_does(row: TinyModel) -> None:
    model, samples = row.build(), samples_of(row, LENGTHS)
    # Every sample once, two in a step and the third in the next, then in another order.
    generator = np.random.default_rng(7)
    order = []
    for _ in range(2):
        drawn = generator.permutation(3).tolist()
        order += [drawn[:2], drawn[2:]]
    with frozen(model):
        got = train(method(penalty=0.02), model, samples, task_loss, Session(seed=7)).log_alpha
        expected = reference_log_alpha(model, samples, order, 0.02)
    assert torch.allclose(got, expected, atol=2e-3)
    assert (expected - 2.0).abs().max() > 0.1
    assert expected.std() > 0.01


def test_batches_change_nothing_and_seeds_do() -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, (0.08, 0.1, 0.09, 0.08, 0.085))
    settings = {"samples_per_step": 5, "steps": 10}
    together = method(**settings).attribute(model, samples, task_loss, Session(seed=3))
    alone = method(**settings, batch_size=1).attribute(model, samples, task_loss, Session(seed=3))
    assert np.allclose(alone.per_sample, together.per_sample, atol=1e-4)
    assert method(**settings).attribute(model, samples, task_loss, Session(seed=3)) == together
    other = method(**settings).attribute(model, samples, task_loss, Session(seed=4))
    assert not np.allclose(other.per_sample, together.per_sample, atol=1e-4)


def test_memory_running_out_changes_nothing_and_is_said_once() -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, (0.08,) * 4)
    settings = method(samples_per_step=4)
    whole = settings.attribute(model, samples, task_loss, Session())

    def greedy(model: Any, batch: Batch) -> Tensor:
        if len(batch.ids) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return task_loss(model, batch)

    notices: list[str] = []
    halved = settings.attribute(model, samples, greedy, Session(notice=notices.append))
    assert np.allclose(halved.per_sample, whole.per_sample, atol=1e-4)
    assert notices == ["memory ran out; going on with batches of 2"]


# Interrupted ------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def interrupted(settings: HardConcreteGates, after: int, **session: Any) -> Training | None:
    """What is kept of a training that ends after so many of its own steps."""
    row = tiny("wav2vec2")
    kept: list[Training] = []
    steps: list[float] = []

    def save(rows: Any, *, steps: int | None = None, training: Training | None = None) -> None:
        assert not rows
        assert training is not None
        # As a file would give it back.
        kept.append(Training.model_validate_json(training.model_dump_json()))

    def progress(done: float, total: int, loss: float | None) -> None:
        steps.append(done)
        if len(steps) == after:
            raise StoppedError

    watching = Session(seed=5, save=save, progress=progress, **session)
    with pytest.raises(StoppedError):
        settings.attribute(row.build(), samples_of(row, FIVE), task_loss, watching)
    return kept[-1] if kept else None


FIVE = (0.08, 0.1, 0.09, 0.08, 0.085)
ROUND = 3
"""Steps in which five samples all come once."""


@pytest.mark.parametrize("stops", [(1,), (ROUND,), (4, 5), (11,)])
def test_taken_up_again_a_training_comes_to_the_same_bits(stops: tuple[int, ...]) -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, FIVE)
    settings = method(steps=11, penalty=0.02)
    whole = settings.attribute(model, samples, task_loss, Session(seed=5))
    kept = None
    for number, after in enumerate(stops, start=1):
        kept = interrupted(settings, after, training=kept)
        assert kept is not None
        assert kept.steps == sum(stops[:number])
        assert kept.share == kept.steps / 11
    seen: list[str] = []

    def watched(model: Any, batch: Batch) -> Tensor:
        seen.extend(batch.ids)
        return task_loss(model, batch)

    again = settings.attribute(model, samples, watched, Session(seed=5, training=kept))
    assert again == whole
    # Two samples, two and one, over and over; two are measured where any step is left.
    left = sum((2, 2, 1)[step % ROUND] for step in range(sum(stops), 11))
    assert len(seen) == left + (2 if left else 0)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"log_alpha": (0.0,)},
        {"log_alpha": (0.0,) * 3, "exp_avg": (0.0,) * 3, "exp_avg_sq": (0.0,) * 3},
        {"log_alpha": (0.0,) * 8, "exp_avg": (0.0,) * 8, "exp_avg_sq": ()},
    ],
)
def test_what_was_not_kept_of_this_training_is_not_gone_on_from(
    state: dict[str, tuple[float, ...]],
) -> None:
    """A file with what there is so far may have been changed by anybody."""
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row, FIVE)
    settings = method(steps=2)
    whole = settings.attribute(model, samples, task_loss, Session(seed=5))
    forged = Session(seed=5, training=Training(steps=1, share=0.5, state=state))
    assert settings.attribute(model, samples, task_loss, forged) == whole


def test_a_training_of_the_weights_too_starts_anew() -> None:
    assert interrupted(method(train="model"), 2) is None


def test_a_run_goes_on_with_an_interrupted_training(
    stand_ins: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = str(stand_ins("keyword_spotting") / "recipe.yaml")

    def words(output: str) -> tuple[str, ...]:
        settings = "attribution={method: gates, steps: 8, samples_per_step: 7}"
        return "run", recipe, "--output", str(tmp_path / output), "--set", settings

    assert CliRunner().invoke(main, words("whole")).exit_code == 0
    open_at = hibprune.attribution.gates.open_probability
    calls: list[int] = []

    def stopping(settings: HardConcreteGates, log_alpha: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return open_at(settings, log_alpha)

    with monkeypatch.context() as patched:
        patched.setattr(hibprune.attribution.gates, "open_probability", stopping)
        assert CliRunner().invoke(main, words("out")).exit_code == 130
    partial = json.loads((tmp_path / "out/steps/attribute.partial.json").read_text())
    assert partial["training"]["steps"] == 5
    resumed = CliRunner().invoke(main, words("out"))
    assert resumed.exit_code == 0
    assert "attribute: going on after 5 steps of training" in resumed.stdout.splitlines()
    whole, out = (
        json.loads((tmp_path / name / "steps/attribute.json").read_text())["result"]
        for name in ("whole", "out")
    )
    assert out["per_sample"] == whole["per_sample"]
    # 20 clips in steps of 7, 7 and 6, and two that are measured; the last three steps were left.
    assert whole["effort"]["backwards"] == 2 + 54
    assert out["effort"]["backwards"] == 2 + 20
    assert whole["effort"]["samples"] == CALIBRATION_CLIPS
    assert out["effort"]["samples"] == round(CALIBRATION_CLIPS * 3 / 8)
    assert not (tmp_path / "out/steps/attribute.partial.json").exists()


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "ast", "bert"])
def test_gates_of_useless_heads_close_and_of_needed_ones_stay_open(name: str) -> None:
    needed = {Head(0, 1), Head(1, 2)}
    row = tiny(name)
    model = with_useless_heads(row, needed)
    samples = samples_of(row)
    loss = distance_from(model, samples)
    settings = method(steps=60, samples_per_step=3, penalty=0.01, learning_rate=0.2)
    values = settings.attribute(model, samples, loss, Session()).values
    assert {head for head, chance in values.items() if chance > 0.5} == needed
    assert max(chance for head, chance in values.items() if head not in needed) < 0.01


def test_a_higher_penalty_closes_more_gates() -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row)
    open_gates = [
        sum(
            method(penalty=penalty, steps=30, learning_rate=0.3)
            .attribute(model, samples, task_loss, Session())
            .values.values()
        )
        for penalty in (0.0, 0.1, 10.0)
    ]
    assert open_gates[0] > open_gates[1] + 0.5 > open_gates[2] + 0.5
    assert open_gates[2] < 0.1


def test_fine_tuning_moves_weights_of_a_copy_only() -> None:
    row = tiny("wavlm")
    model, samples = row.build(), samples_of(row)
    seen: list[Tensor] = []

    def watched(model: Any, batch: Batch) -> Tensor:
        seen.append(attention_weight(model).detach().clone())
        return task_loss(model, batch)

    settings = method(train="model", weights_learning_rate=1e-2)
    before = attention_weight(model).detach().clone()
    settings.attribute(model, samples, watched, Session())
    assert torch.equal(seen[0], before)
    assert not torch.equal(seen[-1], before)
    assert torch.equal(attention_weight(model), before)


def attention_weight(model: PreTrainedModel) -> Tensor:
    return model.get_parameter("wavlm.encoder.layers.0.attention.v_proj.weight")


@pytest.mark.parametrize("trained", ["gates", "model"])
def test_the_model_is_left_as_found(trained: str) -> None:
    assert_survives_interruption(method(train=trained, batch_size=1))


def test_pruned_heads_are_neither_scored_nor_missed() -> None:
    row = tiny("wavlm")
    model = row.build()
    model.prune_heads({0: [0, 1, 2, 3], 1: [1]})
    scores = method().attribute(model, samples_of(row), task_loss, Session())
    assert scores.heads == heads_of(model)
    assert np.isfinite(scores.per_sample).all()


@pytest.mark.parametrize("name", ["intents", "speech_recognition", "encoder_decoder"])
@pytest.mark.parametrize(
    "settings",
    [method(learning_rate=0.5), HeadOutputBottleneck(method="head-iba", steps=3, initial=0.0)],
    ids=["gates", "head-iba"],
)
def test_every_task_tells_heads_apart(
    name: str, settings: MethodBase, stand_ins: Callable[[str], Path]
) -> None:
    loaded = load_recipe(stand_ins(name) / "recipe.yaml")
    model, samples = model_and_samples(loaded)
    scores = settings.attribute(model, samples[:6], loaded.recipe.task.loss, Session())
    assert scores.heads == heads_of(model)
    assert len(set(scores.values.values())) == len(scores.heads)
    assert all(0 < value < 10 for value in scores.values.values())


# In use, and in every kind of attention ---------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gate_in_use_is_the_middle_of_its_distribution(shape: dict[str, float]) -> None:
    """Without a draw the uniform number is one half, where its logit is 0 and no β divides."""
    settings = method(**{**shape, "temperature": 1.0})
    log_alpha = torch.linspace(-6, 6, 25)
    middle = hard_concrete(settings, log_alpha, torch.full((25,), 0.5))
    assert torch.allclose(usual_gates(settings, log_alpha), middle, atol=1e-6)
    assert usual_gates(settings, log_alpha)[0] == 0
    assert usual_gates(settings, log_alpha)[-1] == 1


def test_gates_of_all_kinds_of_attention_are_trained_together() -> None:
    row = tiny("whisper")
    model, samples = row.build(), samples_of(row)
    stacks = ("encoder", "decoder.self", "decoder.cross")
    settings = method(stacks=stacks, steps=8, learning_rate=0.3)
    scores = settings.attribute(model, samples, task_loss, Session(seed=7))
    assert scores.heads == heads_of(model, stacks)
    values = np.array(scores.per_sample[0])
    assert all(
        values[[head.stack == name for head in scores.heads]].std() > 1e-6 for name in stacks
    )


def test_a_former_key_is_told_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"attribution\.fine_tune: write train: model instead"):
        load_recipe(
            Path(__file__).parents[1] / "recipes/quickstart.yaml",
            ("attribution={method: gates, fine_tune: true}",),
        )
