"""The seam into a live model: what it reads and replaces, and that it leaves no trace."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from tiny_models import HEADS, LAYERS, PLANS, RAW_AUDIO, TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.attention import (
    attention_read,
    attention_replaced,
    attention_sites,
    eager_attention,
    frozen,
    prefix_recorded,
    prefix_replayed,
    silenced,
)
from hibprune.families import family_of
from hibprune.records import Head

SAME, MOVED = 1e-5, 1e-3

every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
every_raw_model = pytest.mark.parametrize("tiny", RAW_AUDIO, ids=lambda tiny: tiny.name)
every_plan = pytest.mark.parametrize("plan", [{}, *PLANS.values()], ids=["unpruned", *PLANS.keys()])


def logits(model: PreTrainedModel, inputs: Tensor | dict[str, Tensor], **options: Any) -> Tensor:
    named = inputs if isinstance(inputs, dict) else {model.main_input_name: inputs}
    with torch.no_grad():
        return model(**named, **options).logits


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def traces(model: PreTrainedModel) -> dict[str, Any]:
    """Everything about a model, weights aside, that a context manager could leave changed."""
    return {
        "config": (copy.deepcopy(model.config.to_dict()), model.config._attn_implementation),
        "requires_grad": [(n, w.requires_grad, id(w)) for n, w in model.named_parameters()],
        "modules": [
            (
                path,
                id(module),
                type(module),
                module.training,
                sorted(name for name in vars(module) if not name.startswith("_")),
                {name: len(hooks) for name, hooks in vars(module).items() if "hooks" in name},
            )
            for path, module in model.named_modules()
        ],
    }


def within(
    contexts: Iterable[AbstractContextManager[object]], model: PreTrainedModel, clip: Tensor
) -> None:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        logits(model, clip)


def replayed(model: PreTrainedModel, clip: Tensor) -> AbstractContextManager[object]:
    with prefix_recorded(model) as prefix:
        logits(model, clip)
    return prefix_replayed(model, prefix)


CONTEXTS: dict[str, Callable[[PreTrainedModel, Tensor], AbstractContextManager[object]]] = {
    "frozen": lambda model, clip: frozen(model),
    "silenced": lambda model, clip: silenced(model, [Head(0, 1), Head(1, 2), Head(1, 3)]),
    "eager_attention": lambda model, clip: eager_attention(model),
    "attention_read": lambda model, clip: attention_read(model),
    "attention_replaced": lambda model, clip: attention_replaced(model, lambda _, values: values),
    "prefix_recorded": lambda model, clip: prefix_recorded(model),
    "prefix_replayed": replayed,
}


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
@every_model
def test_no_context_leaves_a_trace(tiny: TinyModel, ending: type[BaseException] | None) -> None:
    """Not in hooks, attributes, modes, gradients, configuration or weights, however it ends."""
    model, clip = tiny.build(), tiny.inputs()
    if model._supports_sdpa:
        model.set_attn_implementation("sdpa")
    model.train()
    attention_sites(model)[1].module.eval()
    next(model.parameters()).requires_grad_(False)
    before = traces(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = logits(model.eval(), clip)
    for module, (_, _, _, training, _, _) in zip(model.modules(), before["modules"], strict=True):
        module.training = training
    assert traces(model) == before

    for name, context in CONTEXTS.items():
        buffers = {key: value.clone() for key, value in model.state_dict().items()}
        entered = context(model, clip)
        model.load_state_dict(buffers)  # a recording in training mode moves batch statistics
        try:
            with entered:
                if name != "eager_attention" or model._supports_sdpa:
                    assert traces(model) != before, name
                if ending is not None:
                    raise ending
        except (ValueError, KeyboardInterrupt) as error:
            assert type(error) is ending  # noqa: PT017
        assert traces(model) == before, name

    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert torch.equal(logits(model.eval(), clip), wanted)


@every_model
def test_exception_within_a_forward_pass_leaves_no_trace(tiny: TinyModel) -> None:
    model, clip = tiny.build(), tiny.inputs()
    wanted, before = logits(model, clip), traces(model)

    def failing(layer: int, values: Tensor) -> Tensor:
        if layer == 1:
            raise KeyboardInterrupt
        return values

    contexts = (
        replayed(model, clip),
        frozen(model),
        silenced(model, [Head(0, 0)]),
        eager_attention(model),
        attention_replaced(model, failing),
    )
    with pytest.raises(KeyboardInterrupt):
        within(contexts, model, clip)
    assert traces(model) == before
    assert torch.equal(logits(model, clip), wanted)


@every_plan
@every_model
def test_attention_read_is_transformers_own(tiny: TinyModel, plan: dict[int, list[int]]) -> None:
    model, clip = tiny.build(), tiny.inputs()
    model.prune_heads(plan)
    wanted = logits(model, clip)
    with attention_read(model) as read:
        computed = logits(model, clip, output_attentions=True)
    assert distance(computed, wanted) < SAME

    left = {layer: HEADS - len(plan.get(layer, ())) for layer in range(LAYERS)}
    assert {layer: weights.shape[1] for layer, weights in read.items()} == {
        layer: count for layer, count in left.items() if count
    }
    model.set_attn_implementation("eager")
    with torch.no_grad():
        own = model(clip, output_attentions=True).attentions
    for layer, weights in read.items():
        frames = weights.shape[-1]
        assert weights.shape == (len(clip), left[layer], frames, frames)
        assert distance(weights.sum(-1), torch.ones(())) < SAME
        assert distance(weights, own[layer]) < SAME
        assert distance(weights[:, 0], weights[:, -1]) > MOVED or left[layer] == 1


@every_raw_model
def test_attention_read_gives_padding_nothing(tiny: TinyModel) -> None:
    model, batch = tiny.build(), tiny.padded_inputs()
    with attention_read(model) as read:
        logits(model, batch, output_attentions=True)
    valid = model._get_feat_extract_output_lengths(batch["attention_mask"].sum(1)).tolist()
    assert len(set(valid)) == 3
    for weights in read.values():
        assert distance(weights.sum(-1), torch.ones(())) < SAME
        for clip, frames in zip(weights, valid, strict=True):
            assert clip[:, :, frames:].sum() < SAME
            assert clip[:, :, :frames].min() > 0


@every_plan
@every_model
def test_own_attention_in_the_place_of_attention_changes_nothing(
    tiny: TinyModel, plan: dict[int, list[int]]
) -> None:
    model, clip = tiny.build(), tiny.inputs()
    model.prune_heads(plan)
    with attention_read(model) as read:
        wanted = logits(model, clip, output_attentions=True)
    with attention_replaced(model, lambda layer, values: read[layer] @ values):
        assert distance(logits(model, clip), wanted) < SAME
    if read:
        with attention_replaced(model, lambda layer, values: read[layer].mT @ values):
            assert distance(logits(model, clip), wanted) > MOVED


@every_model
def test_queries_and_keys_are_not_computed_when_attention_is_replaced(tiny: TinyModel) -> None:
    model, clip = tiny.build(), tiny.inputs()
    family = family_of(model.config.model_type)
    called: Counter[str] = Counter()
    for site in attention_sites(model):
        for name in (family.query, family.key, family.value):
            count_calls(getattr(site.module, name), name, called)
    with attention_replaced(model, lambda _, values: values):
        logits(model, clip)
    assert called == {family.value: LAYERS}
    logits(model, clip)
    assert called == {family.query: LAYERS, family.key: LAYERS, family.value: 2 * LAYERS}


def count_calls(module: nn.Module, name: str, called: Counter[str]) -> None:
    def hook(*_: object) -> None:
        called[name] += 1

    module.register_forward_hook(hook)


@every_plan
@every_model
def test_replayed_front_end_is_not_computed(tiny: TinyModel, plan: dict[int, list[int]]) -> None:
    """And the recording holds all that the model takes from the clip."""
    model, clip = tiny.build(), tiny.inputs()
    model.prune_heads(plan)
    called: Counter[str] = Counter()
    for path, _ in family_of(model.config.model_type).prefix:
        front = model.base_model.get_submodule(path)
        for module in front.modules():
            if module is not front:
                count_calls(module, path, called)
    convolutions: Counter[str] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d) and ".layers." not in path:
            count_calls(module, path, convolutions)
    with prefix_recorded(model) as prefix:
        wanted = logits(model, clip)
    assert prefix.keys() == called.keys()
    assert convolutions

    called.clear()
    convolutions.clear()
    with prefix_replayed(model, prefix):
        assert torch.equal(logits(model, torch.zeros_like(clip)), wanted)
    assert not called
    assert not convolutions
    assert distance(logits(model, torch.zeros_like(clip)), wanted) > MOVED


@every_raw_model
def test_replaying_under_a_mask_does_not_change_the_recording(tiny: TinyModel) -> None:
    """Hugging Face's encoders zero padded frames in place."""
    model, batch = tiny.build(), tiny.padded_inputs()
    with prefix_recorded(model) as prefix:
        unmasked = logits(model, batch["input_values"])
    with prefix_replayed(model, prefix):
        assert distance(logits(model, batch), unmasked) > MOVED
        assert torch.equal(logits(model, batch["input_values"]), unmasked)


@every_model
def test_frame_axes_of_the_front_end(tiny: TinyModel) -> None:
    """Each recorded output counts frames along the axis that the family names."""
    model, clip = tiny.build(), tiny.inputs()
    with prefix_recorded(model) as prefix, attention_read(model) as read:
        logits(model, clip, output_attentions=True)
    frames = read[0].shape[-1]
    for path, axis in family_of(model.config.model_type).prefix:
        assert all(part.shape[axis] == frames for part in prefix[path]), path
