"""Parameters and multiply-adds against what the configuration says by hand.

A linear layer of n inputs and m outputs costs n·m multiply-adds a frame; queries times keys and
weights times values cost frames² times the width each.
"""

from __future__ import annotations

import pytest
import torch
from tiny_models import (
    HEAD_SIZE,
    HEADS,
    LAYERS,
    PLANS,
    TINY_MODELS,
    WITH_DECODER,
    TinyModel,
)
from transformers import PreTrainedModel

from hibprune.evaluation.footprint import measure_footprint
from hibprune.records.measurements import Footprint
from hibprune.records.medium import Length

BY_NAME = {tiny.name: tiny for tiny in TINY_MODELS}
WIDTH, INNER, CLASSES, PROJECTED = 32, 37, 5, 256
SAMPLES, FRAMES = 4000, 25
"""A quarter of a second; the front end's strides are 8, 5 and 4, which leave 25 frames."""
PATCHES = 12
"""AST: 64 × 32 spectrogram, patches of 16 × 16 every 10 × 10: 5 × 2 of them, and two tokens."""

every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())


def measured(model: PreTrainedModel, tiny: TinyModel, seconds: float = 0.25) -> Footprint:
    return measure_footprint(model, tiny.inputs(1, seconds), Length(value=seconds, unit="seconds"))


def linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias."""
    return inputs * outputs + outputs


def test_all_of_a_wav2vec2_classifier() -> None:
    norms = 2 * WIDTH
    parameters = [
        1 * 10 * 16 + 16 * 3 * 16 + 16 * 3 * 16,  # convolutions without bias
        2 * 16,  # group norm after the first
        2 * 16 + linear(16, WIDTH),  # feature projection
        WIDTH,  # masked_spec_embed
        16 + 16 * 16 * WIDTH + WIDTH,  # positions: norm a tap, direction in 2 groups, bias
        norms,
        LAYERS * (4 * linear(WIDTH, WIDTH) + norms),
        LAYERS * (linear(WIDTH, INNER) + linear(INNER, WIDTH) + norms),
        linear(WIDTH, PROJECTED) + linear(PROJECTED, CLASSES),
    ]
    macs = [
        499 * 1 * 10 * 16 + 100 * 16 * 3 * 16 + FRAMES * 16 * 3 * 16,
        FRAMES * 16 * WIDTH,
        (FRAMES + 1) * 16 * 16 * WIDTH,  # padded by half of an even kernel on both sides
        LAYERS * 4 * FRAMES * WIDTH * WIDTH,
        LAYERS * 2 * FRAMES * FRAMES * WIDTH,
        LAYERS * 2 * FRAMES * WIDTH * INNER,
        FRAMES * WIDTH * PROJECTED + PROJECTED * CLASSES,
    ]
    tiny = BY_NAME["wav2vec2"]
    assert measured(tiny.build(), tiny) == Footprint(
        parameters=sum(parameters), macs=sum(macs), length=Length(value=0.25, unit="seconds")
    )


def frames_of(tiny: TinyModel) -> int:
    """A quarter of a second of sound, 25 tokens, or all positions of a fixed length."""
    return {"ast": PATCHES, "whisper": 40, "moonshine": 9}.get(tiny.name, FRAMES)


def a_head(frames: int, biases: int = 3) -> tuple[int, int]:
    """Parameters and multiply-adds of one head: rows of q, k, v with biases, columns of o."""
    parameters = 4 * WIDTH * HEAD_SIZE + biases * HEAD_SIZE
    macs = 4 * frames * WIDTH * HEAD_SIZE + 2 * frames * frames * HEAD_SIZE
    return parameters, macs


def further(name: str) -> tuple[int, int]:
    """What a head of some families has beyond that."""
    distances = 2 * FRAMES - 1
    if name.startswith("wavlm"):
        return 1, FRAMES * HEAD_SIZE * 8  # its constant in the gate; the gate is shared
    if name == "conformer-relative":
        return (
            WIDTH * HEAD_SIZE + 2 * HEAD_SIZE,  # linear_pos without bias; u and v
            distances * WIDTH * HEAD_SIZE + FRAMES * distances * HEAD_SIZE,
        )
    return 0, 0


@every_plan
@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_removal_saves_what_the_heads_cost(tiny: TinyModel, plan: dict[int, list[int]]) -> None:
    model = tiny.build()
    before = measured(model, tiny)
    model.prune_heads(plan)
    after = measured(model, tiny)
    # Whisper's keys have no bias; Moonshine has none at all.
    biases = {"whisper": 2, "moonshine": 0}.get(tiny.name, 3)
    parameters, macs = a_head(frames_of(tiny), biases)
    more_parameters, more_macs = further(tiny.name)
    removed = sum(len(heads) for heads in plan.values())
    assert before.parameters - after.parameters == removed * (parameters + more_parameters)
    assert before.macs - after.macs == removed * (macs + more_macs)


@pytest.mark.parametrize("name", ["wavlm", "conformer-relative", "conformer-rotary"])
def test_attention_of_a_whole_layer(name: str) -> None:
    """Removing every head of a layer saves all its attention but what no head owns."""
    tiny = BY_NAME[name]
    model = tiny.build()
    before = measured(model, tiny)
    own = [
        weight.numel()
        for path, weight in model.named_parameters()
        if ".layers.1." in path and (".attention." in path or ".self_attn." in path)
    ]
    model.prune_heads({1: list(range(HEADS))})
    after = measured(model, tiny)
    stays = WIDTH + (linear(HEAD_SIZE, 8) if name == "wavlm" else 0)  # the gate all heads share
    assert before.parameters - after.parameters == sum(own) - stays
    macs = 4 * FRAMES * WIDTH * WIDTH + 2 * FRAMES * FRAMES * WIDTH
    assert before.macs - after.macs == macs + HEADS * further(name)[1]


def test_attention_grows_with_the_square_of_length() -> None:
    """Second differences over equal steps leave 2 · step² times what stands at frames²."""
    tiny = BY_NAME["wav2vec2"]
    model = tiny.build()
    clips = {seconds: measured(model, tiny, seconds) for seconds in (0.2, 0.4, 0.6)}
    step = 20  # frames in 0.2 s
    second = clips[0.6].macs - 2 * clips[0.4].macs + clips[0.2].macs
    assert second == 2 * step * step * LAYERS * 2 * WIDTH
    assert [clip.length.seconds for clip in clips.values()] == [0.2, 0.4, 0.6]
    assert len({clip.parameters for clip in clips.values()}) == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_counting_depends_on_nothing_but_the_model(attention: str) -> None:
    tiny = BY_NAME["hubert"]
    model = tiny.build().train()
    model.set_attn_implementation(attention)
    count = measured(model, tiny)
    assert count == measured(tiny.build(), tiny)
    assert model.training
    assert model.config._attn_implementation == attention
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_the_frames_counted_with_are_those_of_the_models(tiny: TinyModel) -> None:
    inputs = tiny.inputs(1)
    assert tiny.name != "wav2vec2" or inputs["input_values"].shape[1] == SAMPLES
    model = tiny.build("AutoModel")
    if tiny.speaks:
        model = model.get_encoder()
        del inputs["decoder_input_ids"]
    with torch.no_grad():
        assert model(**inputs)[0].shape[1] == frames_of(tiny)


@pytest.mark.parametrize("tiny", WITH_DECODER, ids=lambda tiny: tiny.name)
def test_a_decoder_makes_one_step(tiny: TinyModel) -> None:
    """And five where there are five tokens: its linear layers are counted a token at a time."""
    model, inputs = tiny.build(), tiny.inputs(1)
    tokens = inputs.pop("decoder_input_ids")
    length = Length(value=0.25, unit="seconds")
    one = measure_footprint(model, inputs, length)
    assert one == measure_footprint(model, {**inputs, "decoder_input_ids": tokens[:, :1]}, length)
    assert one.macs < measure_footprint(model, {**inputs, "decoder_input_ids": tokens}, length).macs
    assert set(inputs) == {tiny.main_input}
