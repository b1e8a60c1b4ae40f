"""AttAttr against captum's integrated gradients, and its completeness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from test_hib import samples_of, task_loss, tiny
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from hibprune.attribution.attattr import attributed
from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.methods import AttAttr
from hibprune.attribution.session import Sample, Session
from hibprune.models.attention import (
    attention_sites,
    frozen,
    heads_of,
    positions_fitted,
    silenced,
)
from hibprune.tasks import Batch

ANSWERS = {"probability": lambda loss: (-loss).exp(), "log-likelihood": lambda loss: -loss}


def method(**fields: Any) -> AttAttr:
    return AttAttr(method="attattr", **{"answer": "probability", **fields})


def attributions(
    model: PreTrainedModel, sample: Sample, at_once: int = 100, **fields: Any
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Attr(A) and A of every layer, of one sample."""
    with frozen(model), positions_fitted(model, sample.inputs):
        calibration = read_unmodified(model, [sample])
        found = attributed(method(**fields), model, calibration, task_loss, at_once)
    return found, calibration.attention


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("name", ["hubert", "data2vec-audio", "whisper", "moonshine"])
def test_is_captums_integrated_gradients(name: str, answer: str) -> None:
    """Captum is given transformers' own model, whose attention function returns its input · V."""
    row = tiny(name)
    model, sample = row.build(), samples_of(row)[0]
    found, own = attributions(model, sample, answer=answer, steps=20)
    for site in attention_sites(model):

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **named: Any
        ) -> tuple[Tensor, None]:
            scores = query @ key.mT * named["scaling"]
            if mask is not None:
                scores = scores + mask[..., : scores.shape[-1]]
            elif module is not site.module and getattr(module, "is_causal", False):  # noqa: B023
                later = torch.ones(scores.shape[-2:]).triu(1).bool()
                scores = scores.masked_fill(later, float("-inf"))
            weights = given[0] if module is site.module else scores.softmax(-1)  # noqa: B023
            return (weights @ value).transpose(1, 2), None

        given: list[Tensor] = []

        def answer_of(weights: Tensor) -> Tensor:
            given[:] = [weights]  # noqa: B023
            inputs = {k: v.expand(len(weights), *v.shape[1:]) for k, v in sample.inputs.items()}
            batch = Batch(("x",) * len(weights), inputs, (sample.target,) * len(weights), ())
            with positions_fitted(model, sample.inputs):
                return ANSWERS[answer](task_loss(model, batch))

        AttentionInterface.register("given", attend)
        model.set_attn_implementation("given")
        try:
            expected = IntegratedGradients(answer_of, multiply_by_inputs=True).attribute(
                own[site.layer], n_steps=20, method="riemann_right"
            )
        finally:
            model.set_attn_implementation("sdpa")
        scale = expected.abs().max()
        assert scale > 0
        assert torch.allclose(found[site.layer], expected, atol=float(1e-4 * scale))


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm", "conformer-relative", "bert", "moonshine"])
def test_a_layers_attributions_add_up_to_what_its_attention_is_worth(name: str) -> None:
    """F(A) − F(0), up to the error of the sum, which is of the order of one step."""
    row = tiny(name)
    model, sample = row.build().double(), samples_of(row)[0]
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in sample.inputs.items()}
    sample = Sample(sample.id, inputs, sample.target)
    batch = Batch((sample.id,), sample.inputs, (sample.target,), ())

    def probability(silent: list[Any]) -> float:
        with torch.no_grad(), silenced(model, silent), positions_fitted(model, inputs):
            return float((-task_loss(model, batch)).exp())

    worth = {
        site.layer: probability([]) - probability(list(site.heads))
        for site in attention_sites(model)
    }
    errors = []
    for steps in (5, 40, 320):
        found, _ = attributions(model, sample, steps=steps)
        errors.append(max(abs(float(found[layer].sum()) - w) for layer, w in worth.items()))
    assert errors[2] < 0.02 * max(map(abs, worth.values()))
    assert errors[1] == pytest.approx(errors[0] / 8, rel=0.5)
    assert errors[2] == pytest.approx(errors[1] / 8, rel=0.5)


def test_the_score_is_the_largest_entry_among_valid_frames() -> None:
    row = tiny("wav2vec2")
    model, samples = row.build(), samples_of(row)
    scores = method().attribute(model, samples, task_loss, Session())
    for sample, got in zip(samples, scores.per_sample, strict=True):
        found, _ = attributions(model, sample)
        expected = torch.cat([matrix.amax((-1, -2)) for matrix in found.values()], dim=1)
        assert np.allclose(got, expected[0], rtol=1e-3)


def test_a_head_that_only_speaks_against_the_truth_scores_below_nothing() -> None:
    """Padding, whose attributions are 0, is not taken for its largest entry."""
    row = tiny("bert")
    model, samples = row.build(), samples_of(row)

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        """Grows with everything that the heads of the last layer attend to."""
        given: list[Tensor] = []
        site = attention_sites(model)[-1]
        handle = site.output.register_forward_pre_hook(
            lambda _module, inputs: given.append(inputs[0])
        )
        model(**batch.inputs)
        handle.remove()
        valid = batch.inputs["attention_mask"][..., None]
        return (given[0] * valid).sum((1, 2))

    site = attention_sites(model)[-1]
    with torch.no_grad():
        site.value.weight.zero_()
        site.value.bias.fill_(1.0)
    scores = method(answer="log-likelihood").attribute(model, samples, loss, Session())
    last = [i for i, head in enumerate(scores.heads) if head.layer == site.layer]
    assert (np.array(scores.per_sample)[:, last] < 0).all()


@pytest.mark.parametrize("at_once", [1, 7, 60, 1000])
def test_how_many_passes_share_a_batch_changes_nothing(at_once: int) -> None:
    """Not even where layers hand on, to attention above the scaled one, a bias for every head."""
    row = replace(tiny("wavlm"), settings={"num_hidden_layers": 3})
    model, samples = row.build(), samples_of(row)
    sizes: list[int] = []

    def watched(model: PreTrainedModel, batch: Batch) -> Tensor:
        sizes.append(len(batch.ids))
        return task_loss(model, batch)

    expected = method(batch_size=20).attribute(model, samples, task_loss, Session())
    got = method(batch_size=at_once).attribute(model, samples, watched, Session())
    assert np.allclose(got.per_sample, expected.per_sample, rtol=1e-3, atol=1e-8)
    assert max(sizes) == min(at_once, 60)
    layers = {head.layer for head in heads_of(model)}
    # With one point of the integral, of two clips where any are to share a batch.
    measured = min(at_once, 2) * (1 + len(layers))
    assert sum(sizes) == measured + len(samples) * (1 + 20 * len(layers))


def test_the_answer_left_open_is_the_tasks() -> None:
    answers = {
        task: AttAttr(method="attattr").for_task(task).answer
        for task in ("keyword-spotting", "intent-classification", "asr-ctc", "asr-seq2seq")
    }
    assert answers == {
        "keyword-spotting": "probability",
        "intent-classification": "probability",
        "asr-ctc": "log-likelihood",
        "asr-seq2seq": "log-likelihood",
    }
    assert method(answer="log-likelihood").for_task("keyword-spotting").answer == "log-likelihood"
    assert method().steps == 20
