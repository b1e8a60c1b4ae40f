"""Heads of decoders: removed as silenced, kept after loading, scored, repaired and exported.

Repair and scores are checked on whole passes with hooks of the tests' own, not layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from repairs import repaired
from tiny_exports import TASKS
from tiny_models import HEAD_SIZE, HEADS, LAYERS, TINY_MODELS, WITH_DECODER, TinyModel
from torch import Tensor, nn
from transcribed import by_name, clips_of, last_states, logits, loss, no_loss, samples_of
from transformers import AutoModelForSpeechSeq2Seq, PreTrainedModel

from hibprune.attribution.methods import Magnitude, Reconstruction, Taylor
from hibprune.attribution.session import Sample, Session
from hibprune.compression.plan import Budget, check_share, lowest_units
from hibprune.compression.quantize.int8 import write_int8
from hibprune.compression.remove import copy_without, remove_units
from hibprune.deployment.export import export_onnx
from hibprune.errors import UserError
from hibprune.models.attention import heads_of, silenced
from hibprune.models.layerwise import CalibrationClip
from hibprune.models.units import units_of
from hibprune.records.units import DECODER_CROSS, DECODER_SELF, POOLS, Plan, Pool, Scores, Unit
from hibprune.stages.latency_table import left_by_layer
from hibprune.tasks import Batch
from hibprune.tasks.generation import load_exported, outputs_of
from hibprune.tasks.seq2seq import ENCODER, MERGED_DECODER, SETTINGS

STACKS = (DECODER_SELF, DECODER_CROSS)
IN_DECODER: tuple[Pool, ...] = ("decoder_head", "cross_head")
ATTENTION = {DECODER_SELF: "self_attn", DECODER_CROSS: "encoder_attn"}
RESIDUAL = {
    ("whisper", DECODER_SELF): "",
    ("moonshine", DECODER_SELF): "",
    ("whisper", DECODER_CROSS): "encoder_attn_layer_norm",
    ("moonshine", DECODER_CROSS): "post_attention_layernorm",
}
PLANS = {
    "self": [Unit(0, 1, DECODER_SELF), Unit(0, 3, DECODER_SELF), Unit(1, 0, DECODER_SELF)],
    "cross": [Unit(1, 2, DECODER_CROSS), Unit(0, 0, DECODER_CROSS), Unit(0, 1, DECODER_CROSS)],
    "even": [Unit(layer, 2, stack) for layer in range(LAYERS) for stack in STACKS],
    "one left": [Unit(0, index, stack) for index in range(1, HEADS) for stack in STACKS],
}
UNEVEN = [Unit(1, 2, DECODER_CROSS)]
every_model = pytest.mark.parametrize("tiny", WITH_DECODER, ids=lambda tiny: tiny.name)
every_plan = pytest.mark.parametrize("plan", PLANS)
every_stack = pytest.mark.parametrize("stack", STACKS)


class TestRemoval:
    @every_plan
    @every_model
    def test_removed_equals_silenced(self, tiny: TinyModel, plan: str) -> None:
        model, gone = tiny.build(), PLANS[plan]
        whole, others = logits(model, tiny), heads_of(model)
        with silenced(model, gone):
            wanted = logits(model, tiny)
        assert (wanted - whole).abs().max() > 1e-3
        before = model.num_parameters()
        remove_units(model, gone)
        assert torch.allclose(logits(model, tiny), wanted, atol=1e-4)
        # Queries, keys, values and what the output projection reads, all 32 wide; Whisper has
        # biases of queries and values.
        biases = 2 if tiny.name == "whisper" else 0
        assert before - model.num_parameters() == len(gone) * HEAD_SIZE * (4 * 32 + biases)
        left = set(heads_of(model, STACKS))
        assert left == set(heads_of(tiny.build(), STACKS)) - set(gone)
        assert heads_of(model) == others

    @every_plan
    @every_model
    def test_reloads_exactly_also_pruned_again(
        self, tiny: TinyModel, plan: str, tmp_path: Path
    ) -> None:
        model, gone = tiny.build(), PLANS[plan]
        others = [
            Unit(1, 3),
            Unit(1, 0),
            Unit(0, 5, "decoder", "neuron"),
            Unit(1, 7, kind="neuron"),
        ]
        remove_units(model, [*gone, *others])
        model.save_pretrained(tmp_path / "once")
        once = type(model).from_pretrained(tmp_path / "once")
        assert torch.equal(logits(once, tiny), logits(model, tiny))
        assert heads_of(once, STACKS) == heads_of(model, STACKS)
        more = [Unit(1, 1, DECODER_SELF), Unit(1, 1, DECODER_CROSS)]
        with silenced(once, more):
            wanted = logits(once, tiny)
        remove_units(once, [*more, *gone])  # those gone are passed over
        assert torch.allclose(logits(once, tiny), wanted, atol=1e-4)
        once.save_pretrained(tmp_path / "twice")
        twice = type(model).from_pretrained(tmp_path / "twice")
        assert torch.equal(logits(twice, tiny), logits(once, tiny))
        assert set(heads_of(twice, STACKS)) == set(heads_of(tiny.build(), STACKS)) - {*gone, *more}
        assert set(heads_of(twice)) == set(heads_of(tiny.build())) - set(others[:2])

    @every_plan
    @every_model
    def test_cached_and_uncached_decoding_agree(self, tiny: TinyModel, plan: str) -> None:
        model = tiny.build()
        remove_units(model, PLANS[plan])
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        cached, plain = (
            model.generate(**clip, max_new_tokens=8, do_sample=False, use_cache=use)
            for use in (True, False)
        )
        assert torch.equal(cached, plain)
        assert cached.shape[1] > 3

    @every_stack
    @every_model
    def test_a_layer_keeps_a_head(self, tiny: TinyModel, stack: str) -> None:
        model = tiny.build()
        remove_units(model, [Unit(0, 0, stack), Unit(0, 1, stack)])
        with pytest.raises(ValueError, match="has to keep a head"):
            remove_units(model, [Unit(0, 2, stack), Unit(0, 3, stack), Unit(1, 0, stack)])
        assert len(heads_of(model, [stack])) == 6

    @pytest.mark.parametrize("place", [(LAYERS, 0), (0, HEADS), (-1, 0), (0, -1)])
    @every_stack
    def test_a_head_that_never_was_is_an_error(self, stack: str, place: tuple[int, int]) -> None:
        for tiny in WITH_DECODER:
            with pytest.raises(IndexError):
                remove_units(tiny.build(), [Unit(*place, stack)])

    def test_other_models_have_none(self) -> None:
        for tiny in TINY_MODELS:
            for pool in IN_DECODER:
                assert bool(units_of(tiny.build(), pool)) == tiny.speaks
        with pytest.raises(IndexError, match=r"no heads of decoder\.self"):
            remove_units(TINY_MODELS[0].build(), [Unit(0, 0, DECODER_SELF)])

    def test_a_classifier_in_the_place_of_the_decoder_loads(self, tmp_path: Path) -> None:
        model = by_name("whisper").build()
        remove_units(model, [*PLANS["self"], *PLANS["cross"], Unit(0, 5, "decoder", "neuron")])
        model.save_pretrained(tmp_path)
        auto = transformers.AutoModelForAudioClassification
        classifier = auto.from_pretrained(tmp_path)
        found = classifier.encoder.state_dict()
        assert all(torch.equal(w, found[n]) for n, w in model.get_encoder().state_dict().items())

    @pytest.mark.parametrize(
        ("told", "fault"),
        [
            ({"0": (HEADS, "f")}, "leaves layer 0 without heads"),
            ({"0": (HEADS, "10")}, "speaks of heads that are gone and never were"),
            ({"0": (HEADS + 1, "1")}, "speaks of 5 heads in a layer that has 4"),
            ({"9": (HEADS, "1")}, "speaks of layer 9, and there are layers 0 to 1"),
        ],
    )
    @pytest.mark.parametrize("field", ["pruned_decoder_heads", "pruned_cross_heads"])
    @every_model
    def test_a_configuration_that_contradicts_itself_is_an_error(
        self, tiny: TinyModel, field: str, told: Any, fault: str
    ) -> None:
        with pytest.raises(ValueError, match=f"{field} {fault}"):
            transformers.AutoModelForSpeechSeq2Seq.from_config(tiny.config(**{field: told}))

    def test_heads_that_tell_the_time_of_words_are_named_by_their_new_places(
        self, tmp_path: Path
    ) -> None:
        model = by_name("whisper").build()
        model.generation_config.alignment_heads = [[0, 1], [0, 3], [1, 0], [1, 2]]
        smaller = copy_without(model, [Unit(0, 1, DECODER_CROSS), Unit(1, 0, DECODER_CROSS)])
        assert smaller.generation_config.alignment_heads == [[0, 2], [1, 1]]
        remove_units(smaller, [Unit(0, 0, DECODER_CROSS), Unit(0, 1, DECODER_SELF)])
        assert smaller.generation_config.alignment_heads == [[0, 1], [1, 1]]
        remove_units(smaller, [Unit(0, 3, DECODER_CROSS), Unit(1, 2, DECODER_CROSS)])
        assert smaller.generation_config.alignment_heads is None
        assert model.generation_config.alignment_heads == [[0, 1], [0, 3], [1, 0], [1, 2]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PreTrainedModel, Path]]:
    """Of every family, without heads of all kinds: layers differ, and one keeps a single head."""
    made = {}
    for tiny in WITH_DECODER:
        directory = tmp_path_factory.mktemp(tiny.name)
        model = tiny.build()
        remove_units(model, [*PLANS["one left"], *UNEVEN, Unit(0, 2), Unit(1, 1)])
        (directory / "onnx").mkdir()
        files = (ENCODER, MERGED_DECODER, *SETTINGS)
        export_onnx(model, directory / "onnx", TASKS[tiny.auto_class], 18, files)
        made[tiny.name] = (model, directory)
    return made


class TestGraphs:
    @every_model
    def test_they_give_out_the_same(self, tiny: TinyModel, exported: Any) -> None:
        model, directory = exported[tiny.name]
        graphs = load_exported(directory, "cpu", threads=1)
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        wanted, found = outputs_of(model)(clip), outputs_of(graphs)(clip)
        assert len(wanted) == 3
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max(), name

    @every_model
    def test_optimum_transcribes_with_them(self, tiny: TinyModel, exported: Any) -> None:
        """As its users do, with a memory that it makes itself for the first step."""
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        model, directory = exported[tiny.name]
        graphs = ORTModelForSpeechSeq2Seq.from_pretrained(directory, subfolder="onnx")
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        if tiny.takes == "waveform":
            clip["attention_mask"] = torch.ones_like(clip["input_values"], dtype=torch.long)
        told = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(graphs.generate(**clip, **told), model.generate(**clip, **told))

    @pytest.mark.parametrize("depths", [(2, 1), (1, 2)], ids=["deeper encoder", "deeper decoder"])
    @every_model
    def test_encoder_and_decoder_need_not_be_equally_deep(
        self, tiny: TinyModel, depths: tuple[int, int], tmp_path: Path
    ) -> None:
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        names = ("encoder_layers", "decoder_layers")
        if tiny.name == "moonshine":
            names = ("encoder_num_hidden_layers", "decoder_num_hidden_layers")
        torch.manual_seed(0)
        config = tiny.config(**dict(zip(names, depths, strict=True)))
        model = AutoModelForSpeechSeq2Seq.from_config(config).eval()
        model.save_pretrained(tmp_path)
        (tmp_path / "onnx").mkdir()
        files = (ENCODER, MERGED_DECODER, *SETTINGS)
        export_onnx(model, tmp_path / "onnx", TASKS[tiny.auto_class], 18, files)
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        wanted = outputs_of(model)(clip)
        found = outputs_of(load_exported(tmp_path, "cpu", threads=1))(clip)
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max(), name
        graphs = ORTModelForSpeechSeq2Seq.from_pretrained(tmp_path, subfolder="onnx")
        if tiny.takes == "waveform":
            clip["attention_mask"] = torch.ones_like(clip["input_values"], dtype=torch.long)
        told = {"max_new_tokens": 8, "do_sample": False}
        assert torch.equal(graphs.generate(**clip, **told), model.generate(**clip, **told))

    @every_model
    def test_memories_have_as_many_heads_as_layers_have(
        self, tiny: TinyModel, exported: Any
    ) -> None:
        model, directory = exported[tiny.name]
        session = load_exported(directory, "cpu", threads=1).decoder.session
        feed = {one.name: one for one in session.get_inputs()}
        batch, tokens, frames = 3, 5, 7
        states = np.random.default_rng(0).normal(size=(batch, frames, 32)).astype(np.float32)
        given = {
            "input_ids": np.full((batch, tokens), 4),
            "encoder_hidden_states": states,
            "encoder_attention_mask": np.ones((batch, frames), np.int64),
            "use_cache_branch": np.array([False]),
            # Of what there is not yet, any number of heads will do.
            **{n: np.zeros((batch, HEADS, 0, 8), np.float32) for n in feed if "past" in n},
        }
        names = [one.name for one in session.get_outputs()]
        outputs = session.run(None, {name: given[name] for name in feed})
        shapes = {
            name: one.shape for name, one in zip(names, outputs, strict=True) if "present" in name
        }
        assert len(shapes) == 4 * LAYERS
        for stack, part, length in (
            (DECODER_SELF, "decoder", tokens), (DECODER_CROSS, "encoder", frames),
        ):  # fmt: skip
            for layer in range(LAYERS):
                left = sum(head.layer == layer for head in heads_of(model, [stack]))
                for kept in ("key", "value"):
                    name = f"present.{layer}.{part}.{kept}"
                    assert shapes[name] == (batch, left, length, HEAD_SIZE)

    def test_a_whole_decoder_says_how_many_heads_it_takes(self, tmp_path: Path) -> None:
        tiny = by_name("whisper")
        model = tiny.build()
        remove_units(model, [Unit(0, 1)])
        export_onnx(model, tmp_path, TASKS[tiny.auto_class], 18, (MERGED_DECODER,))
        graph = onnx.load(tmp_path / MERGED_DECODER).graph
        past = [one for one in graph.input if "past" in one.name]
        assert len(past) == 4 * LAYERS
        assert {one.type.tensor_type.shape.dim[1].dim_value for one in past} == {HEADS}

    @every_model
    def test_int8_follows(self, tiny: TinyModel, exported: Any, tmp_path: Path) -> None:
        model, directory = exported[tiny.name]
        (tmp_path / "onnx").mkdir()
        for name in (ENCODER, MERGED_DECODER):
            write_int8(directory / "onnx" / name, tmp_path / "onnx" / name, False, ())
        for name in SETTINGS:
            (tmp_path / "onnx" / name).write_bytes((directory / "onnx" / name).read_bytes())
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        wanted = outputs_of(model)(clip)
        found = outputs_of(load_exported(tmp_path, "cpu", threads=1))(clip)
        for name, value in wanted.items():
            assert 0 < np.abs(found[name] - value).mean() < 0.2 * np.abs(value).mean(), name


def watched(
    model: PreTrainedModel, stack: str, layer: int, clips: Sequence[CalibrationClip]
) -> tuple[Tensor, Tensor, Tensor]:
    """Stream in front, heads' output and what is written (tokens, width), in whole passes."""
    streams: list[Tensor] = []
    units: list[Tensor] = []
    wrote: list[Tensor] = []
    module = model.base_model.decoder.layers[layer]
    residual = RESIDUAL[model.config.model_type, stack]

    def stream(_module: nn.Module, inputs: Any, named: Any) -> None:
        streams.append((inputs[0] if inputs else named["hidden_states"])[0])

    def written(_module: nn.Module, inputs: Any, output: Tensor) -> None:
        units.append(inputs[0][0])
        wrote.append(output[0])

    place = module.get_submodule(residual) if residual else module
    handles = [
        place.register_forward_pre_hook(stream, with_kwargs=True),
        output_of(model, stack, layer).register_forward_hook(written),
    ]
    with torch.no_grad():
        for clip in clips:
            model(**clip.inputs, decoder_input_ids=clip.tokens)
    for handle in handles:
        handle.remove()
    streams_, units_, wrote_ = (torch.cat(one).double() for one in (streams, units, wrote))
    return streams_, units_, wrote_


def output_of(model: PreTrainedModel, stack: str, layer: int) -> nn.Linear:
    attention = getattr(model.base_model.decoder.layers[layer], ATTENTION[stack])
    found = attention.out_proj if model.config.model_type == "whisper" else attention.o_proj
    assert isinstance(found, nn.Linear)
    return found


class TestRepair:
    @pytest.mark.parametrize("encoder_too", [False, True])
    @every_stack
    @every_model
    def test_the_fit_is_ridge_regression_on_teacher_forced_tokens(
        self, tiny: TinyModel, stack: str, encoder_too: bool, tmp_path: Path
    ) -> None:
        """The normal equations about the old weights, with the drift of all that lies below."""
        model, layer = tiny.build(), 1
        gone = [Unit(layer, 0, stack), Unit(layer, 3, stack)]
        gone += [Unit(0, 1), Unit(0, 2)] if encoder_too else []
        smaller = copy_without(model, gone)
        anchor = output_of(smaller, stack, layer).weight.detach().double()
        clips = clips_of(tiny, 20)
        found = repaired(model, smaller, clips, tmp_path)
        report = next(one for one in found.sublayers if (one.stack, one.layer) == (stack, layer))
        assert (report.refitted, report.removed, report.kept) == (True, 2, 2)
        assert report.strength is not None
        before, _, wrote = watched(model, stack, layer, clips)
        stream, z, _ = watched(smaller, stack, layer, clips)
        wanted = before + wrote - stream
        fitted = output_of(smaller, stack, layer)
        means = (z.mean(0), wanted.mean(0)) if fitted.bias is not None else (0.0, 0.0)
        centred, u = z - means[0], wanted - means[1]
        second = centred.T @ centred
        ridge = report.strength * float(second.diagonal().mean())
        expected = torch.linalg.solve(
            second + ridge * torch.eye(len(second)), centred.T @ u + ridge * anchor.T
        ).T
        assert (fitted.weight - expected).abs().max() < 1e-3 * expected.abs().max()
        if fitted.bias is not None:
            bias = wanted.mean(0) - expected @ z.mean(0)
            assert (fitted.bias - bias).abs().max() < 1e-3 * wanted.abs().max()

    @every_stack
    @every_model
    def test_what_comes_out_is_nearer_to_the_original(
        self, tiny: TinyModel, stack: str, tmp_path: Path
    ) -> None:
        model = tiny.build()
        smaller = copy_without(model, [Unit(0, 1, stack), Unit(0, 2, stack)])
        clips, others = clips_of(tiny, 40)[:30], clips_of(tiny, 40)[30:]
        wanted = last_states(model, others)
        before = (last_states(smaller, others) - wanted).square().mean()
        repaired(model, smaller, clips, tmp_path)
        assert (last_states(smaller, others) - wanted).square().mean() < before
        for name, weight in model.get_encoder().state_dict().items():
            assert torch.equal(weight, smaller.get_encoder().state_dict()[name]), name


class TestScores:
    @every_stack
    @every_model
    def test_the_first_that_goes_is_the_one_whose_best_repair_misses_least(
        self, tiny: TinyModel, stack: str
    ) -> None:
        model = tiny.build()
        clips, samples = samples_of(tiny, 12)
        method = Reconstruction(method="reconstruction")
        found = method.attribute(model, samples, no_loss, Session(), pool_of(stack)).values
        assert tuple(found) == heads_of(model, [stack])
        for layer in range(LAYERS):
            stream, z, wrote = watched(model, stack, layer, clips)
            after = stream + wrote
            spread = (after - after.mean(0)).square().sum()
            misses = []
            for index in range(HEADS):
                own = range(index * HEAD_SIZE, (index + 1) * HEAD_SIZE)
                others = np.delete((z - z.mean(0)).numpy(), own, axis=1)
                u = (wrote - wrote.mean(0)).numpy()
                fit, *_ = np.linalg.lstsq(others, u, rcond=None)
                misses.append(((u - others @ fit) ** 2).sum() / float(spread))
            scores = [found[Unit(layer, index, stack)] for index in range(HEADS)]
            least = int(np.argmin(misses))
            assert int(np.argmin(scores)) == least
            assert scores[least] == pytest.approx(misses[least], rel=1e-2)

    @every_stack
    @every_model
    def test_slopes_are_those_of_the_loss_when_a_head_is_turned_down(
        self, tiny: TinyModel, stack: str
    ) -> None:
        model, (_, samples) = tiny.build(), samples_of(tiny, 2)
        method = Taylor(method="taylor", batch_size=1)
        found = method.attribute(model, samples, loss, Session(), pool_of(stack)).values
        assert tuple(found) == heads_of(model, [stack])
        for unit in (Unit(0, 3, stack), Unit(1, 0, stack)):
            slopes = [turned(model, sample, unit) for sample in samples]
            assert found[unit] == pytest.approx(np.mean(np.abs(slopes)), rel=2e-2, abs=2e-5)

    @every_stack
    @every_model
    def test_magnitude_is_of_values_and_the_output_projection(
        self, tiny: TinyModel, stack: str
    ) -> None:
        model = tiny.build()
        method = Magnitude(method="magnitude")
        found = method.attribute(model, [], no_loss, Session(), pool_of(stack)).values
        assert tuple(found) == heads_of(model, [stack])
        own = slice(HEAD_SIZE, 2 * HEAD_SIZE)
        attention = getattr(model.base_model.decoder.layers[1], ATTENTION[stack])
        norms = (
            attention.v_proj.weight[own].norm() * output_of(model, stack, 1).weight[:, own].norm()
        )
        assert found[Unit(1, 1, stack)] == pytest.approx(float(norms.detach()), rel=1e-5)


def pool_of(stack: str) -> Pool:
    return next(pool for pool in IN_DECODER if POOLS[pool] == ("head", stack))


def turned(model: PreTrainedModel, sample: Sample, unit: Unit) -> float:
    """Slope of the loss by a central difference, as a head's output is scaled about 1."""
    losses = []
    for factor in (1.1, 0.9):

        def scale(_module: nn.Module, inputs: Any, factor: float = factor) -> Any:
            states = inputs[0].clone()
            states[..., unit.index * HEAD_SIZE : (unit.index + 1) * HEAD_SIZE] *= factor
            return (states, *inputs[1:])

        handle = output_of(model, unit.stack, unit.layer).register_forward_pre_hook(scale)
        batch = Batch(
            ids=("x",), inputs=sample.inputs, targets=(sample.target,), frames=(), logits=()
        )
        with torch.no_grad():
            losses.append(float(loss(model, batch)))
        handle.remove()
    return (losses[0] - losses[1]) / 0.2


def in_ranking(*layers: int, stack: str = DECODER_SELF) -> tuple[Unit, ...]:
    """Heads of layers, the n-th of a layer as its n-th head."""
    seen: dict[int, int] = {}
    units = []
    for layer in layers:
        units.append(Unit(layer, seen.get(layer, 0), stack))
        seen[layer] = seen.get(layer, 0) + 1
    return tuple(units)


class TestShares:
    def scores(self, units: tuple[Unit, ...]) -> Scores:
        rising = tuple(float(number) for number in range(len(units)))
        return Scores(method="m", heads=units, samples=(), per_sample=(rising,))

    def test_a_layer_keeps_its_best_head(self) -> None:
        units = in_ranking(0, 0, 0, 1, 1, 1)
        budget = Budget(heads=1, decoder_heads=0.5)
        assert lowest_units(self.scores(units), budget, "decoder_head") == (
            Unit(0, 0, DECODER_SELF), Unit(0, 1, DECODER_SELF), Unit(1, 0, DECODER_SELF),
        )  # fmt: skip
        two = Budget(heads=1, decoder_heads=0.34, min_heads_per_layer=2)
        assert lowest_units(self.scores(units), two, "decoder_head") == (
            Unit(0, 0, DECODER_SELF), Unit(1, 0, DECODER_SELF),
        )  # fmt: skip
        even = Budget(heads=1, cross_heads=0.7, scope="layerwise")
        assert len(lowest_units(self.scores(units), even, "cross_head")) == 4

    def test_more_than_may_go_is_told_in_a_line(self) -> None:
        units = in_ranking(0, 0, 1, 1, stack=DECODER_CROSS)
        budget = Budget(heads=1, cross_heads=0.75)
        with pytest.raises(UserError) as fault:
            check_share(budget, "cross_head", units)
        assert str(fault.value) == (
            "budget.cross_heads: 3 heads to remove, but only 2 of 4 can go where a layer keeps 1: "
            "lower the budget"
        )

    @pytest.mark.parametrize(("share", "left"), [(0.5, 2), (0.0, 1)])
    def test_what_is_timed_keeps_a_head_as_well(self, share: float, left: int) -> None:
        units = in_ranking(0, 0, 0, 0, 1, 1, 1, 1)
        assert left_by_layer(units, share, "decoder_head") == {0: left, 1: left}
        encoders = in_ranking(0, 0, 0, 0, stack="encoder")
        assert left_by_layer(encoders, 0.0, "head") == {0: 0}

    def test_a_plan_tells_heads_of_three_stacks_apart(self) -> None:
        units = [Unit(0, 1), Unit(0, 2, DECODER_SELF), Unit(1, 3, DECODER_CROSS)]
        plan = Plan.of(units, [Unit(0, 0), Unit(0, 1)])
        assert (plan.removed, plan.kept) == ((Unit(0, 1),), (Unit(0, 0),))
        assert (plan.decoder_heads, plan.cross_heads) == ({0: (2,)}, {1: (3,)})
        assert sorted(plan.units) == sorted(units)
        assert Plan.model_validate_json(plan.model_dump_json()) == plan
