"""The seam into a live model: what it reads and replaces, and that it leaves no trace."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest
import torch
from tiny_models import HEADS, LAYERS, MASKED, PLANS, TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.models.attention import (
    attention_read,
    attention_sites,
    eager_attention,
    frame_count,
    frozen,
    input_length,
    logit_count,
    silenced,
)
from hibprune.models.attention_mixing import attention_replaced, layer_attention_replaced
from hibprune.models.families import family_of
from hibprune.models.replay import (
    layers_recorded,
    layers_replayed,
    prefix_recorded,
    prefix_replayed,
)
from hibprune.records.units import Head

SAME, MOVED = 1e-5, 1e-3

every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
every_masked_model = pytest.mark.parametrize("tiny", MASKED, ids=lambda tiny: tiny.name)
every_plan = pytest.mark.parametrize("plan", [{}, *PLANS.values()], ids=["unpruned", *PLANS.keys()])


Inputs = dict[str, Tensor]


def logits(model: PreTrainedModel, inputs: Inputs, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **options).logits


def unlike(tiny: TinyModel, clip: Inputs) -> Inputs:
    """Another clip of the same shape, with the same tokens for a decoder."""
    return {**clip, tiny.main_input: torch.zeros_like(clip[tiny.main_input])}


def unmasked(tiny: TinyModel, batch: Inputs) -> Inputs:
    return {tiny.main_input: batch[tiny.main_input]}


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
    contexts: Iterable[AbstractContextManager[object]], model: PreTrainedModel, clip: Inputs
) -> None:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        logits(model, clip)


def replayed(model: PreTrainedModel, clip: Inputs) -> AbstractContextManager[object]:
    with prefix_recorded(model) as prefix:
        logits(model, clip)
    return prefix_replayed(model, prefix)


def upper_layer_alone(model: PreTrainedModel, clip: Inputs) -> AbstractContextManager[object]:
    with layers_recorded(model) as recorded:
        logits(model, clip)
    return layers_replayed(model, recorded, 1)


CONTEXTS: dict[str, Callable[[PreTrainedModel, Inputs], AbstractContextManager[object]]] = {
    "frozen": lambda model, clip: frozen(model),
    "silenced": lambda model, clip: silenced(model, [Head(0, 1), Head(1, 2), Head(1, 3)]),
    "eager_attention": lambda model, clip: eager_attention(model),
    "attention_read": lambda model, clip: attention_read(model),
    "attention_replaced": lambda model, clip: attention_replaced(model, lambda _, values: values),
    "layer_attention_replaced": lambda model, clip: layer_attention_replaced(
        model, 1, lambda values: values
    ),
    "prefix_recorded": lambda model, clip: prefix_recorded(model),
    "prefix_replayed": replayed,
    "layers_recorded": lambda model, clip: layers_recorded(model),
    "layers_replayed": upper_layer_alone,
}


def reads_by_configuration(model: PreTrainedModel) -> bool:
    """Whether the model looks up how to compute attention each time, and could do it otherwise."""
    one_class = len(family_of(model.config.model_type).attention_classes) == 1
    return bool(model._supports_sdpa) and one_class


@pytest.mark.parametrize("ending", [None, ValueError, KeyboardInterrupt])
@every_model
def test_no_context_leaves_a_trace(tiny: TinyModel, ending: type[BaseException] | None) -> None:
    """Not in hooks, attributes, modes, gradients, configuration or weights, however it ends."""
    model, clip = tiny.build(), tiny.inputs()
    assert model.config._attn_implementation == ("sdpa" if model._supports_sdpa else "eager")
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
                if name != "eager_attention" or reads_by_configuration(model):
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


@every_masked_model
def test_eager_attention_computes_the_same_also_without_giving_out_weights(
    tiny: TinyModel,
) -> None:
    """DistilBERT's class for sdpa cannot do with the mask that its model makes for eager."""
    model, batch = tiny.build(), tiny.padded_inputs()
    wanted = logits(model, batch)
    with eager_attention(model):
        assert distance(logits(model, batch), wanted) < SAME


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
        outputs = model(**clip, output_attentions=True)
    own = outputs.encoder_attentions if tiny.speaks else outputs.attentions
    for layer, weights in read.items():
        frames = weights.shape[-1]
        assert weights.shape == (2, left[layer], frames, frames)
        assert distance(weights.sum(-1), torch.ones(())) < SAME
        assert distance(weights, own[layer]) < SAME
        assert distance(weights[:, 0], weights[:, -1]) > MOVED or left[layer] == 1


@every_model
def test_reading_leaves_no_trace_of_transformers_own_recording(tiny: TinyModel) -> None:
    """Moonshine's leaves a `forward` on every attention module whose weights it collected."""
    model, clip = tiny.build(), tiny.inputs()
    before = traces(model)
    with attention_read(model):
        logits(model, clip, output_attentions=True)
    assert traces(model) == before


@every_masked_model
def test_attention_read_gives_padding_nothing(tiny: TinyModel) -> None:
    model, batch = tiny.build(), tiny.padded_inputs()
    with attention_read(model) as read:
        logits(model, batch, output_attentions=True)
    valid = [frame_count(model, int(length)) for length in batch["attention_mask"].sum(1)]
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


@every_plan
@every_model
def test_own_attention_in_the_place_of_one_layers_changes_nothing(
    tiny: TinyModel, plan: dict[int, list[int]]
) -> None:
    """And another in its place reaches the layers above, whose attention is computed anew."""
    model, clip = tiny.build(), tiny.inputs()
    model.prune_heads(plan)
    with attention_read(model) as read:
        wanted = logits(model, clip, output_attentions=True)
    for layer, weights in read.items():
        with layer_attention_replaced(model, layer, lambda values: weights @ values):  # noqa: B023
            assert distance(logits(model, clip), wanted) < SAME
        with (
            layer_attention_replaced(model, layer, lambda values: weights.mT @ values),  # noqa: B023
            attention_read(model) as other,
        ):
            assert distance(logits(model, clip, output_attentions=True), wanted) > MOVED
        for number in read:
            moved = distance(other[number], read[number])
            assert moved > MOVED if number > layer else moved < SAME


@every_model
def test_queries_and_keys_are_not_computed_when_attention_is_replaced(tiny: TinyModel) -> None:
    model, clip = tiny.build(), tiny.inputs()
    stack = family_of(model.config.model_type).encoder
    called: Counter[str] = Counter()
    for site in attention_sites(model):
        for name in (stack.query, stack.key, stack.value):
            count_calls(getattr(site.module, name), name, called)
    with attention_replaced(model, lambda _, values: values):
        logits(model, clip)
    assert called == {stack.value: LAYERS}
    logits(model, clip)
    assert called == {stack.query: LAYERS, stack.key: LAYERS, stack.value: 2 * LAYERS}


def count_calls(module: nn.Module, name: str, called: Counter[str]) -> None:
    def hook(*_: object) -> None:
        called[name] += 1

    module.register_forward_hook(hook)


def count_whole_calls(module: nn.Module, name: str, called: Counter[str]) -> None:
    """Count calls of a module's own computation, which a stand-in for its forward is not."""
    own = type(module).forward

    def hook(*_: object) -> None:
        if getattr(module.forward, "__func__", None) is own:
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
    heavy: Counter[str] = Counter()
    for path, module in model.named_modules():
        inner = ".layers." in path or "decoder" in path
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Embedding) and not inner:
            count_whole_calls(module, path, heavy)
    with prefix_recorded(model) as prefix:
        wanted = logits(model, clip)
    assert called.keys() <= prefix.keys()
    assert heavy

    called.clear()
    heavy.clear()
    with prefix_replayed(model, prefix):
        assert torch.equal(logits(model, unlike(tiny, clip)), wanted)
    assert not called
    assert heavy.keys() <= {"model.encoder.embed_positions"}
    assert distance(logits(model, unlike(tiny, clip)), wanted) > MOVED


@every_plan
@every_model
def test_replayed_layers_are_not_computed(tiny: TinyModel, plan: dict[int, list[int]]) -> None:
    """And what the layer above makes of another clip is what it makes of the recorded one."""
    model, clip = tiny.build(), tiny.inputs()
    model.prune_heads(plan)
    called: Counter[str] = Counter()
    for site in attention_sites(model):
        count_calls(site.value, str(site.layer), called)
    with torch.no_grad(), layers_recorded(model) as recorded:
        logits(model, clip)
    silent = attention_sites(model)[1].heads[:1]
    with torch.no_grad(), silenced(model, silent):
        wanted = logits(model, clip)

    called.clear()
    with torch.no_grad(), layers_replayed(model, recorded, 1), silenced(model, silent):
        assert torch.equal(logits(model, unlike(tiny, clip)), wanted)
    assert "0" not in called
    with torch.no_grad(), layers_replayed(model, recorded, 0):
        assert distance(logits(model, unlike(tiny, clip)), wanted) > MOVED


@every_masked_model
def test_replaying_under_a_mask_does_not_change_the_recording(tiny: TinyModel) -> None:
    """Hugging Face's encoders zero padded frames in place."""
    model, batch = tiny.build(), tiny.padded_inputs()
    with prefix_recorded(model) as prefix:
        wanted = logits(model, unmasked(tiny, batch))
    with prefix_replayed(model, prefix):
        assert distance(logits(model, batch), wanted) > MOVED
        assert torch.equal(logits(model, unmasked(tiny, batch)), wanted)


@every_model
def test_frame_axes_of_the_front_end(tiny: TinyModel) -> None:
    """Each recorded output counts frames along the axis that the family names."""
    model, clip = tiny.build(), tiny.inputs()
    with prefix_recorded(model) as prefix, attention_read(model) as read:
        logits(model, clip, output_attentions=True)
    frames = read[0].shape[-1]
    for path, axis in family_of(model.config.model_type).prefix:
        assert all(part.shape[axis] == frames for part in prefix[path]), path


def test_an_adapter_behind_the_encoder_shortens_the_logits_alone() -> None:
    """CTC takes the lengths of the logits; attention's are those of the front end."""
    settings = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 32}
    tiny = TinyModel("wav2vec2-adapter", "Wav2Vec2Config", settings)
    model = tiny.build("AutoModelForCTC")
    for seconds in (0.1, 0.25, 0.4):
        clip = tiny.inputs(1, seconds)
        with torch.no_grad(), attention_read(model) as read:
            given = model(**clip, output_attentions=True).logits
        length = input_length(model, clip)
        assert frame_count(model, length) == read[0].shape[-1]
        assert logit_count(model, length) == given.shape[1]
