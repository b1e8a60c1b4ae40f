"""Taylor scores against a closed form, and against differences of the loss in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_hib import samples_of, task_loss, tiny
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.methods import Taylor
from hibprune.attribution.session import Sample, Session
from hibprune.models.attention import AttentionSite, attention_sites, positions_fitted
from hibprune.records.units import Head
from hibprune.tasks import Batch

STACKS = ("encoder", "decoder.self", "decoder.cross")


def method(**fields: Any) -> Taylor:
    return Taylor(method="taylor", **fields)


def test_closed_form_of_a_loss_that_is_linear_in_the_heads() -> None:
    """The last layer's attention gives out W·c + b, so a head's slope is its columns' share."""
    row = tiny("bert")
    model, samples = row.build(), samples_of(row)
    site = attention_sites(model)[-1]
    contexts: dict[tuple[str, ...], Tensor] = {}

    def linear_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        """What the output projection gives out for the first token, summed."""
        given: list[Tensor] = []
        handle = site.output.register_forward_hook(
            lambda _module, inputs, output: given.extend((inputs[0], output))
        )
        model(**batch.inputs)
        handle.remove()
        contexts[batch.ids] = given[0].detach()[:, 0]
        return given[1][:, 0].sum(-1)

    scores = method(batch_size=1).attribute(model, samples, linear_loss, Session())
    last = [place for place, head in enumerate(scores.heads) if head.layer == site.layer]
    column_sums = site.output.weight.detach().sum(0)
    for sample, got in zip(samples, scores.per_sample, strict=True):
        (context,) = contexts[(sample.id,)]
        share = (column_sums * context).unflatten(-1, (-1, site.head_size)).sum(-1)
        assert np.allclose(np.array(got)[last], share.abs().numpy(), atol=1e-5)
        assert share.min() < -0.01 < 0.01 < share.abs().max()


@pytest.mark.parametrize(
    "name", ["wav2vec2-stable", "wavlm", "conformer-rotary", "ast", "whisper", "moonshine", "bert"]
)
def test_slope_is_that_of_the_loss_in_double_precision(name: str) -> None:
    row = tiny(name)
    model = row.build().double()
    samples = [as_double(sample) for sample in samples_of(row)]
    stacks = STACKS if row.speaks else STACKS[:1]
    scores = method(stacks=stacks).attribute(model, samples, task_loss, Session())
    for sample, got in zip(samples, scores.per_sample, strict=True):
        slopes = [difference(model, sample, head) for head in scores.heads]
        assert np.allclose(got, np.abs(slopes), rtol=1e-5, atol=1e-9)
        assert min(slopes) < 0 < max(slopes)


def as_double(sample: Sample) -> Sample:
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in sample.inputs.items()}
    return Sample(sample.id, inputs, sample.target)


def difference(model: PreTrainedModel, sample: Sample, head: Head, step: float = 1e-4) -> float:
    """Central difference of the loss in a factor on the head's output."""
    site: AttentionSite = attention_sites(model, [head.stack])[head.layer]
    columns = slice(head.index * site.head_size, (head.index + 1) * site.head_size)
    batch = Batch((sample.id,), sample.inputs, (sample.target,), ())
    weight = site.output.get_parameter("weight")
    losses = []
    with torch.no_grad(), positions_fitted(model, sample.inputs):
        for factor in (1 + step, 1 - step):
            own = weight[:, columns].clone()
            weight[:, columns] *= factor
            losses.append(float(task_loss(model, batch)))
            weight[:, columns] = own
    return (losses[0] - losses[1]) / (2 * step)


def test_within_a_layer_mean_scores_have_norm_1() -> None:
    row = tiny("whisper")
    model, samples = row.build(), samples_of(row)
    saved: dict[str, Any] = {}
    plain = method(stacks=STACKS).attribute(model, samples, task_loss, Session())
    scaled = method(stacks=STACKS, normalise="layer").attribute(
        model, samples, task_loss, Session(save=saved.update)
    )
    for stack in STACKS:
        for layer in (0, 1):
            own = [head for head in plain.heads if (head.stack, head.layer) == (stack, layer)]
            before = np.array([plain.values[head] for head in own])
            after = np.array([scaled.values[head] for head in own])
            assert np.linalg.norm(after) == pytest.approx(1)
            assert np.allclose(after, before / np.linalg.norm(before))
    # What is kept for another run is as it was before the other samples were known.
    assert np.allclose([saved[sample.id] for sample in samples], plain.per_sample)
    again = method(stacks=STACKS, normalise="layer").attribute(
        model, samples, task_loss, Session(done=saved)
    )
    assert again == scaled


def test_a_layer_in_which_nothing_matters_stays_0() -> None:
    row = tiny("bert")
    model = row.build()
    with torch.no_grad():
        attention_sites(model)[0].output.weight.zero_()
    scores = method(normalise="layer").attribute(model, samples_of(row), task_loss, Session())
    assert [scores.values[Head(0, index)] for index in range(4)] == [0.0] * 4
