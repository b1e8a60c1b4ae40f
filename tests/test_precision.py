"""Reduced precision: what autocast computes, without casting the weights in every pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_hib import method, samples_of, task_loss, tiny
from tiny_models import TINY_MODELS, TinyModel

from hibprune.attribution.reduced_precision import products_in
from hibprune.attribution.session import Session
from hibprune.models.attention import frozen, positions_fitted


@pytest.mark.parametrize("row", TINY_MODELS, ids=lambda row: row.name)
def test_weights_held_in_bfloat16_compute_what_autocast_does(row: TinyModel) -> None:
    model, inputs = row.build(), samples_of(row)[0].inputs
    own = {name: (weight, weight.clone()) for name, weight in model.named_parameters()}
    with frozen(model), torch.no_grad(), positions_fitted(model, inputs):
        exact = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(**inputs).logits
            with products_in(model, "bfloat16"):
                got = model(**inputs).logits
                held = {weight.dtype for weight in model.parameters()}
    assert torch.equal(got, expected)
    assert not torch.equal(got.float(), exact), "nothing was reduced"
    assert held == {torch.float32, torch.bfloat16}
    for name, weight in model.named_parameters():
        assert weight is own[name][0]
        assert torch.equal(weight, own[name][1])


def test_weights_are_back_after_an_error() -> None:
    model = tiny("wav2vec2").build()
    own = list(model.parameters())
    with pytest.raises(KeyboardInterrupt), products_in(model, "bfloat16"):
        raise KeyboardInterrupt
    assert all(one is other for one, other in zip(own, model.parameters(), strict=True))


def test_float32_leaves_the_weights_alone() -> None:
    model = tiny("wav2vec2").build()
    with products_in(model, "float32"):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["wav2vec2", "whisper", "bert"])
def test_scores_are_nearly_those_of_float32(name: str) -> None:
    row = tiny(name)
    samples = samples_of(row)
    scores = {
        precision: method(precision=precision, score="information").attribute(
            row.build(), samples, task_loss, Session()
        )
        for precision in ("float32", "bfloat16")
    }
    exact, reduced = (np.array(one.per_sample) for one in scores.values())
    assert not np.array_equal(exact, reduced)
    np.testing.assert_allclose(reduced, exact, rtol=0.02)
