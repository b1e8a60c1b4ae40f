"""Occlusion against what its definition comes to where that can be written down."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_hib import LENGTHS, samples_of, task_loss, tiny
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.methods import Occlusion
from hibprune.attribution.session import Session
from hibprune.compression.plan import Budget, check_budget, make_plan
from hibprune.errors import UserError
from hibprune.models.attention import attention_sites, heads_of, positions_fitted, silenced
from hibprune.records.units import Head
from hibprune.tasks import Batch

STACKS = ("encoder", "decoder.self", "decoder.cross")


def method(**fields: Any) -> Occlusion:
    return Occlusion(method="occlusion", **fields)


def test_closed_form_of_a_loss_that_is_linear_in_the_heads() -> None:
    """The last layer's attention gives out W·c + b: a silent head takes its own columns' share."""
    row = tiny("bert")
    model, samples = row.build(), samples_of(row)
    site = attention_sites(model)[-1]
    contexts: dict[tuple[str, ...], Tensor] = {}

    def linear_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        """Minus what the output projection gives out for the first token, summed."""
        given: list[Tensor] = []
        handle = site.output.register_forward_hook(
            lambda _module, inputs, output: given.extend((inputs[0], output))
        )
        model(**batch.inputs)
        handle.remove()
        # The first of a sample is that of the whole model.
        contexts.setdefault(batch.ids, given[0][:, 0])
        return -given[1][:, 0].sum(-1)

    scores = method(batch_size=1).attribute(model, samples, linear_loss, Session())
    last = [place for place, head in enumerate(scores.heads) if head.layer == site.layer]
    column_sums = site.output.weight.detach().sum(0)
    for sample, row_of_scores in zip(samples, scores.per_sample, strict=True):
        (context,) = contexts[(sample.id,)]
        share = (column_sums * context).unflatten(-1, (-1, site.head_size)).sum(-1)
        got = np.array(row_of_scores)[last]
        assert np.allclose(got, share.numpy(), atol=1e-5)
        assert np.abs(got).max() > 0.01


@pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
def test_batches_give_what_each_sample_gives_alone(row: TinyModel) -> None:
    model, samples = row.build(), samples_of(row, LENGTHS)
    stacks = STACKS if row.speaks else STACKS[:1]
    scores = method(stacks=stacks).attribute(model, samples, task_loss, Session())
    assert scores.heads == heads_of(model, stacks)
    assert scores.samples == tuple(sample.id for sample in samples)
    for sample, got in zip(samples, scores.per_sample, strict=True):
        alone = Batch((sample.id,), sample.inputs, (sample.target,), ())
        with torch.no_grad(), positions_fitted(model, sample.inputs):
            whole = task_loss(model, alone)
            expected = []
            for head in scores.heads:
                with silenced(model, [head]):
                    expected.append(float(task_loss(model, alone) - whole))
        assert np.allclose(got, expected, atol=1e-5)
        assert np.abs(expected).max() > 1e-4


@pytest.mark.parametrize("name", ["wavlm", "whisper", "moonshine", "distilbert"])
def test_a_useless_head_scores_nothing(name: str) -> None:
    row = tiny(name)
    model = row.build()
    stacks = STACKS if row.speaks else STACKS[:1]
    useless = {Head(1, 2, stack) for stack in stacks}
    for stack in stacks:
        site = attention_sites(model, [stack])[1]
        with torch.no_grad():
            site.output.weight[:, 2 * site.head_size : 3 * site.head_size] = 0
    scores = method(stacks=stacks).attribute(model, samples_of(row), task_loss, Session())
    assert {head for head, value in scores.values.items() if abs(value) < 1e-7} == useless


def test_rows_done_before_are_not_computed_again() -> None:
    row = tiny("whisper")
    model, samples = row.build(), samples_of(row)
    whole = method(stacks=STACKS).attribute(model, samples, task_loss, Session())
    seen: list[str] = []

    def watched(model: Any, batch: Batch) -> Tensor:
        seen.extend(batch.ids)
        return task_loss(model, batch)

    done = {"clip1": whole.per_sample[1]}
    again = method(stacks=STACKS).attribute(model, samples, watched, Session(done=done))
    assert again == whole
    assert "clip1" not in seen


def test_a_plan_takes_the_encoders_heads_only() -> None:
    row = tiny("moonshine")
    model = row.build()
    settings = method(stacks=("encoder", "decoder.cross"))
    scores = settings.attribute(model, samples_of(row), task_loss, Session())
    for attempt in (
        lambda: make_plan(scores, Budget(heads=1)),
        lambda: check_budget(Budget(heads=1), heads_of(model, settings.scored_stacks())),
    ):
        with pytest.raises(UserError, match=r"heads of decoder\.cross are scored, and only"):
            attempt()
    own = method().attribute(model, samples_of(row), task_loss, Session())
    assert make_plan(own, Budget(heads=1)).total == 8


@pytest.mark.parametrize("stacks", [(), ("decoder",), ("encoder", "encoder")])
def test_stacks_that_are_no_stacks(stacks: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        method(stacks=stacks)
