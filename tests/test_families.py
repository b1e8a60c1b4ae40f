"""For every family: silenced and removed heads are one and the same, and reloading is exact.

WavLM's attention is written anew in hibprune, so it is held against Hugging Face's own module,
imported a second time under another name and never taught anything.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from tiny_models import (
    HEAD_SIZE,
    HEADS,
    LAYERS,
    MASKED,
    PLANS,
    TINY_MODELS,
    TinyModel,
)
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.compression.remove import remove_heads, save_model
from hibprune.errors import UserError
from hibprune.models.attention import attention_read, attention_sites, heads_of, silenced
from hibprune.models.families import FAMILIES, family_of
from hibprune.records.units import Head, Plan

SAME, MOVED = 1e-5, 1e-3
"""Logits are about 0.1: equal below the first, plainly changed above the second."""

every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
every_masked_model = pytest.mark.parametrize("tiny", MASKED, ids=lambda tiny: tiny.name)
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
WAVLM = [tiny for tiny in TINY_MODELS if tiny.configuration == "WavLMConfig"]
every_wavlm = pytest.mark.parametrize("tiny", WAVLM, ids=lambda tiny: tiny.name)

ALL_HEADS = tuple(Head(layer, index) for layer in range(LAYERS) for index in range(HEADS))


def heads(plan: dict[int, list[int]]) -> tuple[Head, ...]:
    return tuple(Head(layer, index) for layer, indices in plan.items() for index in indices)


def pruned(model: PreTrainedModel, plan: dict[int, list[int]]) -> PreTrainedModel:
    gone = heads(plan)
    remove_heads(model, Plan(removed=gone, kept=tuple(h for h in ALL_HEADS if h not in gone)))
    return model


def logits(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **options).logits


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def test_every_family_has_a_tiny_model() -> None:
    assert {tiny.config().model_type for tiny in TINY_MODELS} == {
        family.model_type for family in FAMILIES
    }


def test_unknown_model_type_is_a_plain_error() -> None:
    with pytest.raises(UserError, match=r"^m: no known attention heads in model type 'gpt2'"):
        family_of("gpt2", "m")


@every_model
def test_every_head_matters_to_the_tiny_model(tiny: TinyModel) -> None:
    """Otherwise the comparisons below could not fail."""
    model, clip = tiny.build(), tiny.inputs()
    assert heads_of(model) == ALL_HEADS
    unpruned = logits(model, clip)
    for head in ALL_HEADS:
        with silenced(model, [head]):
            assert distance(logits(model, clip), unpruned) > MOVED, head


@every_plan
@every_model
def test_silenced_and_removed_are_equal(tiny: TinyModel, plan: dict[int, list[int]]) -> None:
    for attention in ("eager", "sdpa"):
        if attention == "sdpa" and not tiny.build()._supports_sdpa:
            continue  # transformers has none for WavLM and the conformer
        model, clip = tiny.build(attention=attention), tiny.inputs()
        assert model.config._attn_implementation == attention
        unpruned = logits(model, clip)
        with silenced(model, heads(plan)):
            without = logits(model, clip)
        assert distance(without, unpruned) > MOVED
        assert distance(logits(pruned(model, plan), clip), without) < SAME
        assert heads_of(model) == tuple(head for head in ALL_HEADS if head not in heads(plan))


@every_plan
@every_masked_model
def test_silenced_and_removed_are_equal_in_padded_batches(
    tiny: TinyModel, plan: dict[int, list[int]]
) -> None:
    model, batch = tiny.build(), tiny.padded_inputs()
    unpruned = logits(model, batch)
    unmasked = logits(model, {tiny.main_input: batch[tiny.main_input]})
    assert distance(unpruned, unmasked) > MOVED  # the mask is heeded
    with silenced(model, heads(plan)):
        without = logits(model, batch)
    assert distance(without, unpruned) > MOVED
    assert distance(logits(pruned(model, plan), batch), without) < SAME


@every_model
def test_silenced_in_an_already_pruned_model(tiny: TinyModel) -> None:
    """Heads that are left are found by their original index."""
    model, clip = pruned(tiny.build(), {0: [0], 1: [0, 1, 2, 3]}), tiny.inputs()
    before = logits(model, clip)
    with silenced(model, [Head(0, 0), Head(1, 2)]):
        assert torch.equal(logits(model, clip), before)
    with silenced(model, [Head(0, 2)]):
        without = logits(model, clip)
    assert distance(without, before) > MOVED
    assert distance(logits(pruned(model, {0: [2]}), clip), without) < SAME


@every_plan
@every_model
def test_reload_is_exact(tiny: TinyModel, plan: dict[int, list[int]], tmp_path: Path) -> None:
    model, clip = pruned(tiny.build(), plan), tiny.inputs()
    files = save_model(model, tmp_path)
    assert all((tmp_path / name).is_file() for name in files)
    loaded = getattr(transformers, tiny.auto_class).from_pretrained(tmp_path)
    assert distance(logits(loaded, clip), logits(model, clip)) == 0.0
    assert heads_of(loaded) == heads_of(model)
    assert {name: weight.shape for name, weight in loaded.named_parameters()} == {
        name: weight.shape for name, weight in model.named_parameters()
    }


@pytest.fixture(scope="module")
def untouched() -> Iterator[ModuleType]:
    """A second copy of transformers' WavLM, which hibprune's import hook does not know."""
    origin = importlib.util.find_spec("transformers.models.wavlm.modeling_wavlm")
    assert origin is not None
    assert origin.origin is not None
    name = "transformers.models.wavlm.modeling_wavlm_untouched"
    spec = importlib.util.spec_from_file_location(name, origin.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    assert module.WavLMAttention.forward.__module__ == name
    yield module
    del sys.modules[name]


def untouched_wavlm(
    untouched: ModuleType, tiny: TinyModel, gone: tuple[Head, ...] = ()
) -> PreTrainedModel:
    """The tiny model on Hugging Face's own code; a head is gone when its columns are zero."""
    model = untouched.WavLMForSequenceClassification(tiny.config()).eval()
    model.load_state_dict(tiny.build().state_dict())
    with torch.no_grad():
        for head in gone:
            projection = model.wavlm.encoder.layers[head.layer].attention.out_proj
            projection.weight[:, head.index * HEAD_SIZE : (head.index + 1) * HEAD_SIZE] = 0
    return model


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("output_attentions", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@every_wavlm
def test_wavlm_is_transformers_own(
    tiny: TinyModel, padded: bool, output_attentions: bool, untouched: ModuleType
) -> None:
    batch = tiny.padded_inputs() if padded else tiny.inputs()
    expected = logits(untouched_wavlm(untouched, tiny), batch)
    computed = logits(tiny.build(), batch, output_attentions=output_attentions)
    assert distance(computed, expected) < SAME


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("padded", [False, True])
@every_wavlm
def test_wavlm_gives_weights_of_each_head(
    tiny: TinyModel, padded: bool, untouched: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' WavLM gives their mean, which torch computes from weights of each head."""
    per_head: list[Tensor] = []

    class RecordingFunctional:
        softmax = functional.softmax

        @staticmethod
        def multi_head_attention_forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            output, weights = functional.multi_head_attention_forward(
                *args, **kwargs, average_attn_weights=False
            )
            per_head.append(weights)
            return output, weights.mean(1)

    monkeypatch.setattr(untouched, "F", RecordingFunctional)
    batch = tiny.padded_inputs() if padded else tiny.inputs()
    logits(untouched_wavlm(untouched, tiny), batch, output_attentions=True)

    model = tiny.build()
    with attention_read(model) as read:
        logits(model, batch, output_attentions=True)
    assert sorted(read) == list(range(LAYERS)) == list(range(len(per_head)))
    for layer, expected in enumerate(per_head):
        assert distance(expected[:, 0], expected[:, 1]) > 0.01  # heads differ
        assert distance(read[layer], expected) < SAME


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("padded", [False, True])
@every_plan
@every_wavlm
def test_pruned_wavlm_is_transformers_own_without_the_columns(
    tiny: TinyModel, plan: dict[int, list[int]], padded: bool, untouched: ModuleType
) -> None:
    batch = tiny.padded_inputs() if padded else tiny.inputs()
    expected = logits(untouched_wavlm(untouched, tiny, heads(plan)), batch)
    model = pruned(tiny.build(), plan)
    assert distance(logits(model, batch), expected) < SAME
    assert distance(logits(model, batch, output_attentions=True), expected) < SAME


def test_wavlm_learns_under_pruning(untouched: ModuleType) -> None:
    """Gradients of the heads that are left are those of the full model without the columns."""
    tiny, plan = WAVLM[0], {0: [1], 1: [0, 3]}
    full = untouched_wavlm(untouched, tiny, heads(plan))
    model = pruned(tiny.build(), plan)
    for one in (full, model):
        one(**tiny.inputs()).logits.square().sum().backward()
    for site in attention_sites(model):
        own = full.wavlm.encoder.layers[site.layer].attention
        kept = [head.index for head in site.heads]
        expected = own.q_proj.weight.grad.unflatten(0, (HEADS, HEAD_SIZE))[kept]
        assert expected.abs().max() > 0
        gradient = site.module.q_proj.weight.grad.unflatten(0, (-1, HEAD_SIZE))
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-7)
        gate = site.module.gru_rel_pos_const.grad
        expected_gate = own.gru_rel_pos_const.grad[:, kept]
        assert torch.allclose(gate, expected_gate, rtol=1e-3, atol=1e-7)
