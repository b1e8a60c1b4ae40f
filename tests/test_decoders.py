"""Encoder–decoder models: decoder heads as sites of their own, and encoders on shorter clips."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_models import HEADS, LAYERS, TINY_MODELS, WITH_DECODER, TinyModel
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.session import Sample
from hibprune.errors import UserError
from hibprune.models.attention import (
    attention_sites,
    heads_of,
    positions_cut,
    positions_fitted,
    silenced,
)
from hibprune.models.checkpoint import Checkpoint
from hibprune.models.families import family_of
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.models.replay import encoder_kept
from hibprune.models.source import ModelSource
from hibprune.records.units import Head, Plan, Scores, heads_by_layer
from hibprune.tasks import Vocabulary

STACKS = ("encoder", "decoder.self", "decoder.cross")
SAME, MOVED = 1e-5, 1e-3

every_model = pytest.mark.parametrize("tiny", WITH_DECODER, ids=lambda tiny: tiny.name)
every_stack = pytest.mark.parametrize("stack", STACKS)


def tiny(name: str) -> TinyModel:
    return next(model for model in WITH_DECODER if model.name == name)


def logits(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs, **options).logits


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


class TestStacks:
    @every_model
    def test_heads_of_every_stack_are_named(self, tiny: TinyModel) -> None:
        model = tiny.build()
        by_stack = [
            tuple(Head(layer, i, stack) for layer in range(LAYERS) for i in range(HEADS))
            for stack in STACKS
        ]
        assert heads_of(model) == by_stack[0]
        assert heads_of(model, STACKS) == (*by_stack[0], *by_stack[1], *by_stack[2])
        assert heads_of(model, STACKS[:0:-1]) == (*by_stack[2], *by_stack[1])

    @every_stack
    @every_model
    def test_silencing_is_emptying_the_columns_of_that_projection(
        self, tiny: TinyModel, stack: str
    ) -> None:
        model, clip = tiny.build(), tiny.inputs()
        wanted = logits(model, clip)
        for head in heads_of(model, [stack]):
            with silenced(model, [head]):
                without = logits(model, clip)
            assert torch.equal(logits(model, clip), wanted)
            assert distance(without, wanted) > MOVED, head
            other = copy.deepcopy(model)
            site = attention_sites(other, [stack])[head.layer]
            with torch.no_grad():
                columns = slice(head.index * site.head_size, (head.index + 1) * site.head_size)
                site.output.weight[:, columns] = 0
            assert distance(logits(other, clip), without) < SAME

    @every_model
    def test_heads_of_several_stacks_at_once(self, tiny: TinyModel) -> None:
        model, clip = tiny.build(), tiny.inputs()
        heads = [Head(0, 1), Head(0, 1, "decoder.self"), Head(1, 2, "decoder.cross")]
        with silenced(model, heads):
            together = logits(model, clip)
        with silenced(model, heads[:1]), silenced(model, heads[1:2]), silenced(model, heads[2:]):
            assert torch.equal(logits(model, clip), together)

    @every_model
    def test_removal_leaves_the_decoder_alone(self, tiny: TinyModel) -> None:
        model, clip = tiny.build(), tiny.inputs()
        before = {name: weight.clone() for name, weight in model.model.decoder.named_parameters()}
        with silenced(model, [Head(0, 1), Head(0, 2), Head(1, 0), Head(0, 1, "decoder.self")]):
            wanted = logits(model, clip)
        model.prune_heads({0: [1, 2], 1: [0]})
        assert all(
            torch.equal(weight, before[name])
            for name, weight in model.model.decoder.named_parameters()
        )
        assert heads_of(model, STACKS[1:]) == heads_of(tiny.build(), STACKS[1:])
        with silenced(model, [Head(0, 1, "decoder.self")]):
            assert distance(logits(model, clip), wanted) < SAME

    @every_model
    def test_generation_goes_on_with_a_pruned_encoder(self, tiny: TinyModel) -> None:
        """A token at a time, with the cached keys and values of a decoder with all its heads."""
        model = tiny.build()
        model.prune_heads({0: [0, 1, 2, 3], 1: [1]})
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        cached = model.generate(**clip, max_new_tokens=5, do_sample=False)
        plain = model.generate(**clip, max_new_tokens=5, do_sample=False, use_cache=False)
        assert torch.equal(cached, plain)
        assert cached.shape[0] == 2

    @pytest.mark.parametrize("ending", [None, KeyboardInterrupt])
    @every_model
    def test_an_encoder_that_is_kept_runs_once(
        self, tiny: TinyModel, ending: type[BaseException] | None
    ) -> None:
        model, clip = tiny.build(), tiny.inputs()
        other = {**clip, "decoder_input_ids": clip["decoder_input_ids"].flip(1)}
        wanted, calls = [logits(model, clip), logits(model, other)], []
        first_layer = model.model.encoder.layers[0].self_attn
        handle = first_layer.register_forward_hook(lambda *_: calls.append(1))
        try:
            with encoder_kept(model):
                assert torch.equal(logits(model, clip), wanted[0])
                assert torch.equal(logits(model, other), wanted[1])
                assert len(calls) == 1
                if ending is not None:
                    raise ending
        except KeyboardInterrupt:
            pass
        handle.remove()
        assert "forward" not in vars(model.get_encoder())
        zeros = {**clip, tiny.main_input: torch.zeros_like(clip[tiny.main_input])}
        assert distance(logits(model, zeros), wanted[0]) > MOVED

    def test_a_family_without_a_decoder_says_so(self) -> None:
        model = transformers.BertModel(
            transformers.BertConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
            )
        )
        with pytest.raises(
            UserError, match=r"'bert' has no attention heads 'decoder.self': use enc"
        ):
            attention_sites(model, ["decoder.self"])


class TestJson:
    def test_the_encoders_heads_are_written_as_before(self) -> None:
        plan = Plan(removed=(Head(1, 2),), kept=(Head(0, 0),))
        assert plan.model_dump_json() == (
            '{"removed":[{"layer":1,"index":2}],"kept":[{"layer":0,"index":0}],"neurons":{}}'
        )
        assert Plan.model_validate_json(plan.model_dump_json()) == plan
        assert heads_by_layer(plan.removed) == {1: [2]}

    def test_other_heads_name_their_stack(self) -> None:
        heads = (Head(1, 2), Head(1, 2, "decoder.cross"))
        scores = Scores(method="m", heads=heads, samples=("a",), per_sample=((1.0, 2.0),))
        assert Scores.model_validate_json(scores.model_dump_json()) == scores
        assert scores.values == {heads[0]: 1.0, heads[1]: 2.0}


class TestPositions:
    def short_model(self, frames: int) -> PreTrainedModel:
        """The same weights in a model made for shorter clips."""
        full = tiny("whisper").build()
        config = tiny("whisper").config(max_source_positions=frames)
        short = transformers.WhisperForConditionalGeneration(config).eval()
        weights = full.state_dict()
        name = "model.encoder.embed_positions.weight"
        weights[name] = weights[name][:frames]
        short.load_state_dict(weights)
        return short

    def test_cut_is_a_model_made_for_that_length(self) -> None:
        model, clip = tiny("whisper").build(), tiny("whisper").inputs()
        cut = {**clip, "input_features": clip["input_features"][..., :26]}
        with pytest.raises(ValueError, match="of length 80, but found 26"):
            logits(model, cut)
        with positions_cut(model, 13):
            found = logits(model, cut)
        with positions_fitted(model, cut):
            assert torch.equal(logits(model, cut), found)
        assert torch.equal(found, logits(self.short_model(13), cut))
        with positions_fitted(model, clip):
            assert torch.equal(logits(model, clip), logits(tiny("whisper").build(), clip))

    @pytest.mark.parametrize("ending", [ValueError, KeyboardInterrupt])
    def test_restored_however_it_ends(self, ending: type[BaseException]) -> None:
        model, clip = tiny("whisper").build(), tiny("whisper").inputs()
        config, wanted = copy.deepcopy(model.config.to_dict()), logits(model, clip)
        try:
            with positions_cut(model, 20), positions_cut(model, 10):
                assert model.config.max_source_positions == 10
                raise ending
        except (ValueError, KeyboardInterrupt):
            pass
        assert model.config.to_dict() == config
        assert torch.equal(logits(model, clip), wanted)

    @pytest.mark.parametrize("frames", [0, 41])
    def test_lengths_that_the_model_has_no_positions_for(self, frames: int) -> None:
        model = tiny("whisper").build()
        with (
            pytest.raises(UserError, match="where the model takes 1 to 40"),
            positions_cut(model, frames),
        ):
            pass
        assert model.config.max_source_positions == 40

    def test_other_families_are_left_alone(self) -> None:
        model, clip = tiny("moonshine").build(), tiny("moonshine").inputs()
        wanted = logits(model, clip)
        with positions_cut(model, 3), positions_fitted(model, clip):
            assert torch.equal(logits(model, clip), wanted)


def checkpoint(model: PreTrainedModel, feature_extractor: Any) -> Checkpoint:
    return Checkpoint(
        model=model,
        preprocessor=SoundPreprocessor(feature_extractor),
        vocabulary=Vocabulary(labels=()),
        family=family_of(model.config.model_type),
        source=ModelSource(source="none"),
        identity="",
    )


class TestCalibrationInputs:
    @pytest.mark.parametrize(
        ("seconds", "filled"), [(0.01, 0.5), (0.5, 0.5), (0.51, 1.0), (1.7, 2.0), (2.0, 2.0)]
    )
    def test_whisper_gets_the_frames_of_the_clip_to_a_whole_half_second(
        self, seconds: float, filled: float
    ) -> None:
        """They are the first of those that fill its window, here of 2 s."""
        model = transformers.WhisperForConditionalGeneration(
            tiny("whisper").config(max_source_positions=100)
        ).eval()
        own = checkpoint(model, transformers.WhisperFeatureExtractor(16, chunk_length=2))
        waveform = np.random.default_rng(0).normal(size=round(16_000 * seconds)) * 0.1
        cut = own.calibration_inputs(waveform)["input_features"]
        assert cut.shape == (1, 16, round(100 * filled))
        whole = own.inputs(waveform)["input_features"]
        assert whole.shape == (1, 16, 200)
        assert torch.equal(whole[..., : cut.shape[-1]], cut)

        sample = Sample("clip", {"input_features": cut}, (5, 6, 2))
        calibration = read_unmodified(model, [sample])
        assert calibration.batch.frames == (round(50 * filled),)
        assert model.config.max_source_positions == 100

    def test_moonshine_gets_silence_to_a_whole_half_second(self) -> None:
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
        own = checkpoint(tiny("moonshine").build(), extractor)
        waveform = np.random.default_rng(0).normal(size=9_000).astype(np.float32)
        filled = own.calibration_inputs(waveform)["input_values"]
        assert filled.shape == (1, 16_000)
        assert torch.equal(filled[0, :9_000], torch.from_numpy(waveform))
        assert not filled[0, 9_000:].any()

    def test_other_families_get_the_clip_as_it_is(self) -> None:
        row = TINY_MODELS[0]
        own = checkpoint(row.build(), transformers.Wav2Vec2FeatureExtractor())
        waveform = np.random.default_rng(0).normal(size=9_000)
        assert torch.equal(
            own.calibration_inputs(waveform)["input_values"], own.inputs(waveform)["input_values"]
        )


class TestMoonshine:
    def test_settings_of_the_model_reach_a_pruned_layer(self) -> None:
        """Its own configuration is a view: made before, and still true after, a change."""
        model, clip = tiny("moonshine").build(attention="sdpa"), tiny("moonshine").inputs()
        model.prune_heads({0: [1]})
        wanted, attention = logits(model, clip), model.model.encoder.layers[0].self_attn
        assert attention.config._attn_implementation == "sdpa"
        assert attention.config.num_key_value_heads == HEADS - 1
        model.set_attn_implementation("eager")
        assert attention.config._attn_implementation == "eager"
        assert distance(logits(model, clip), wanted) < SAME
        assert model.config.num_key_value_heads == model.config.num_attention_heads == HEADS
        assert model.model.decoder.layers[0].self_attn.config is model.config

    def test_what_is_set_in_a_pruned_layer_is_set_for_the_model(self) -> None:
        """As by optimum's exporter; how many heads are left cannot be set."""
        model = tiny("moonshine").build()
        model.prune_heads({0: [1]})
        view = model.model.encoder.layers[0].self_attn.config
        view.use_cache = not model.config.use_cache
        assert view.use_cache is model.config.use_cache is False
        with pytest.raises(AttributeError, match="num_key_value_heads belongs to one layer"):
            view.num_key_value_heads = HEADS
        assert view.num_key_value_heads == HEADS - 1

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    def test_a_pruned_model_can_be_copied(self, how: str) -> None:
        model, clip = tiny("moonshine").build(), tiny("moonshine").inputs()
        model.prune_heads({0: [1]})
        model.prune_heads({0: [2], 1: [0]})
        other = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
        assert torch.equal(logits(other, clip), logits(model, clip))
        other.set_attn_implementation("eager")
        views = [each.model.encoder.layers[0].self_attn.config for each in (model, other)]
        assert [view._attn_implementation for view in views] == ["sdpa", "eager"]
        assert views[1].shared is other.config
        assert [view.num_key_value_heads for view in views] == [2, 2]

    def test_grouped_queries_are_refused(self) -> None:
        config = tiny("moonshine").config(encoder_num_key_value_heads=2)
        model = transformers.MoonshineForConditionalGeneration(config)
        for attempt in (heads_of, lambda model: model.prune_heads({0: [1]})):
            with pytest.raises(UserError, match="MoonshineAttention has grouped queries"):
                attempt(model)
        assert model.config.pruned_heads == {}
