"""Relevance: none is made or lost on the way, and captum propagates the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LRP
from captum.attr._utils.lrp_rules import EpsilonRule
from test_hib import samples_of, task_loss, tiny
from test_taylor import as_double
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.attribution.lrp import multipliers_of, relevance_conserved
from hibprune.attribution.methods import LayerwiseRelevance
from hibprune.attribution.session import Sample, Session
from hibprune.errors import UserError
from hibprune.models.attention import attention_sites, positions_fitted, stack_layers
from hibprune.models.families import family_of
from hibprune.tasks import Batch

every_model = pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)


def method(**fields: Any) -> LayerwiseRelevance:
    return LayerwiseRelevance(method="lrp", **fields)


def without_biases(row: TinyModel) -> PreTrainedModel:
    model = row.build().double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.zero_()
    return model


def recorded(module: nn.Module, given: list[Tensor], taken: list[Tensor]) -> None:
    """Keep the first input and the output of a module, with their gradients."""

    def keep(_module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        first = inputs[0] if inputs else named.get("hidden_states", named.get("x"))
        outputs = output[0] if isinstance(output, tuple) else output
        for tensor, kept in ((first, taken), (outputs, given)):
            tensor.retain_grad()
            kept.append(tensor)

    module.register_forward_hook(keep, with_kwargs=True)


def relevance(tensor: Tensor) -> float:
    assert tensor.grad is not None
    return float((tensor.detach() * tensor.grad).sum())


def propagate(model: PreTrainedModel, sample: Sample, conserved: bool = True) -> None:
    """Send relevance of the log-probability of the truth backwards."""
    batch = Batch((sample.id,), sample.inputs, (sample.target,), ())
    with positions_fitted(model, sample.inputs):
        if conserved:
            with relevance_conserved(model, multipliers_of(model)):
                loss = task_loss(model, batch)
        else:
            loss = task_loss(model, batch)
        (-loss.sum()).backward()


class Traced:
    """Where relevance is measured on its way through a model."""

    def __init__(self, model: PreTrainedModel) -> None:
        family = family_of(model.config.model_type)
        self.layer_inputs: list[Tensor] = []
        self.layer_outputs: list[Tensor] = []
        self.decoder_inputs: list[Tensor] = []
        self.logits: list[Tensor] = []
        for layer in stack_layers(model.base_model, family.encoder):
            recorded(layer, self.layer_outputs, self.layer_inputs)
        if model.config.is_encoder_decoder:
            first = stack_layers(model.base_model, family.stack("decoder.self"))[0]
            recorded(first, [], self.decoder_inputs)

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            output.logits.retain_grad()
            self.logits.append(output.logits)

        model.register_forward_hook(keep)


@every_model
def test_no_layer_makes_or_loses_relevance(row: TinyModel) -> None:
    """Without biases all of the logits' relevance arrives at the first layer, or the decoder's."""
    model, sample = without_biases(row), as_double(samples_of(row)[0])
    traced = Traced(model)
    propagate(model, sample)
    boundaries = [relevance(t) for t in (*traced.layer_inputs, *traced.layer_outputs)]
    assert np.allclose(boundaries, boundaries[0], rtol=1e-6)
    arrived = boundaries[0] + sum(relevance(tensor) for tensor in traced.decoder_inputs)
    assert arrived == pytest.approx(relevance(traced.logits[0]), rel=1e-6)
    assert abs(arrived) > 1e-4


@every_model
def test_plain_gradients_would_not_conserve(row: TinyModel) -> None:
    model, sample = without_biases(row), as_double(samples_of(row)[0])
    traced = Traced(model)
    propagate(model, sample, conserved=False)
    first, last = relevance(traced.layer_inputs[0]), relevance(traced.layer_outputs[-1])
    assert abs(first - last) > 0.01 * max(abs(first), abs(last))


@every_model
def test_the_models_outputs_stay_what_they_were(row: TinyModel) -> None:
    model = row.build().double()
    inputs = as_double(samples_of(row)[0]).inputs
    with torch.no_grad(), positions_fitted(model, inputs):
        wanted = model(**inputs).logits
        with relevance_conserved(model, multipliers_of(model)):
            computed = model(**inputs).logits
    assert torch.allclose(computed, wanted, rtol=1e-9, atol=1e-12)


@every_model
def test_heads_of_a_layer_share_what_its_attention_gives_out(row: TinyModel) -> None:
    model, sample = without_biases(row), as_double(samples_of(row)[0])
    given: dict[int, list[Tensor]] = {}
    for site in attention_sites(model):
        recorded(site.output, given.setdefault(site.layer, []), [])
    propagate(model, sample)
    scores = method(sign="signed", normalise="none").attribute(
        without_biases(row), [sample], task_loss, Session()
    )
    for layer, (output,) in given.items():
        own = [value for head, value in scores.values.items() if head.layer == layer]
        assert sum(own) == pytest.approx(relevance(output), rel=1e-6)
        assert min(own) < max(own)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_is_captums_propagation(activation: type[nn.Module]) -> None:
    """With biases, which take relevance away; captum passes it through activations unchanged."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(6, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 3)
    ).double()
    inputs = torch.randn(4, 6, dtype=torch.double, requires_grad=True)
    with relevance_conserved(network):
        (gradient,) = torch.autograd.grad(network(inputs)[:, 1].sum(), inputs)
    for module in network:
        module.rule = EpsilonRule(epsilon=1e-12)
    expected = LRP(network).attribute(inputs, target=1)
    assert expected.abs().max() > 0.01
    assert torch.allclose(inputs * gradient, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "quick_gelu", "silu", "relu"])
def test_activations_by_name_conserve(activation: str) -> None:
    row = tiny("wav2vec2")
    model = TinyModel("x", row.configuration, {"hidden_act": activation}).build().double()
    inputs = torch.randn(3, 32, dtype=torch.double, requires_grad=True)
    feed_forward = stack_layers(model.base_model, family_of("wav2vec2").encoder)[0].feed_forward
    with torch.no_grad():
        feed_forward.intermediate_dense.bias.zero_()
        feed_forward.output_dense.bias.zero_()
    with relevance_conserved(model):
        output = feed_forward(inputs)
    wanted = feed_forward(inputs)
    assert torch.allclose(output, wanted)
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    assert float((inputs.detach() * gradient).sum()) == pytest.approx(float(wanted.sum().detach()))


def test_an_activation_that_relevance_cannot_pass_is_a_plain_error() -> None:
    row = TinyModel("x", "Wav2Vec2Config", {"hidden_act": "sigmoid"})
    with pytest.raises(UserError) as error:
        method().attribute(row.build(), samples_of(tiny("wav2vec2")), task_loss, Session())
    assert str(error.value) == (
        "wav2vec2.encoder.layers.0.feed_forward.intermediate_act_fn: relevance cannot be "
        "propagated through Sigmoid, which is not 0 at 0: use taylor, attattr or hib"
    )


def test_sign_and_share_of_a_layer() -> None:
    row = tiny("hubert")
    model, samples = row.build(), samples_of(row)
    raw = method(sign="signed", normalise="none").attribute(model, samples, task_loss, Session())
    for sign, applied in (("signed", np.asarray), ("absolute", np.abs)):
        plain = method(sign=sign, normalise="none").attribute(model, samples, task_loss, Session())
        assert np.allclose(plain.per_sample, applied(raw.per_sample))
        shares = method(sign=sign).attribute(model, samples, task_loss, Session())
        for layer in (slice(0, 4), slice(4, 8)):
            own = np.array(raw.per_sample)[:, layer]
            expected = applied(own) / np.abs(own).sum(1, keepdims=True)
            assert np.allclose(np.array(shares.per_sample)[:, layer], expected, atol=1e-6)
    assert np.min(raw.per_sample) < 0


def test_a_layer_without_relevance_shares_nothing() -> None:
    row = tiny("bert")
    model = row.build()
    with torch.no_grad():
        attention_sites(model)[1].output.weight.zero_()
    scores = method().attribute(model, samples_of(row), task_loss, Session())
    assert (np.array(scores.per_sample)[:, 4:] == 0).all()
