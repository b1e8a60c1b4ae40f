"""Neurons of decoders: removed as silenced, kept after loading, scored and repaired on transcripts.

Repair and scores are checked on whole passes with hooks of the tests' own, not layer by layer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from repairs import repaired
from tiny_exports import TASKS
from tiny_models import LAYERS, TINY_MODELS, WITH_DECODER, TinyModel
from torch import Tensor, nn
from transcribed import by_name, clips_of, last_states, logits, loss, no_loss, samples_of
from transformers import PreTrainedModel

from hibprune.attribution.base import Sample, Session
from hibprune.attribution.methods import Magnitude, Reconstruction, Taylor
from hibprune.compression.neuron_pruning import remove_neurons
from hibprune.compression.remove import copy_without
from hibprune.deployment.export import export_onnx
from hibprune.models.feed_forward import feed_forward_sites, neurons_of, neurons_silenced
from hibprune.models.layerwise import CalibrationClip
from hibprune.models.units import units_of
from hibprune.records.units import DECODER, Unit
from hibprune.tasks import Batch
from hibprune.tasks.generation import load_exported, outputs_of
from hibprune.tasks.seq2seq import ENCODER, MERGED_DECODER, SETTINGS

every_model = pytest.mark.parametrize("tiny", WITH_DECODER, ids=lambda tiny: tiny.name)
every_plan = pytest.mark.parametrize("plan", ["uneven", "even", "emptied"])
NEURONS = 37
FEED_FORWARD_RESIDUAL = {"whisper": "final_layer_norm", "moonshine": "final_layernorm"}


def neuron(layer: int, index: int) -> Unit:
    return Unit(layer, index, DECODER, "neuron")


def chosen(plan: str) -> list[Unit]:
    """Some of the first layer, the same places everywhere, or a whole layer."""
    places = {
        "uneven": [(0, index) for index in range(0, NEURONS, 5)],
        "even": [(layer, index) for layer in range(LAYERS) for index in (0, 3, 5, 36)],
        "emptied": [(1, index) for index in range(NEURONS)],
    }
    return [neuron(layer, index) for layer, index in places[plan]]


class TestRemoval:
    @every_plan
    @every_model
    def test_removed_equals_silenced(self, tiny: TinyModel, plan: str) -> None:
        model, gone = tiny.build(), chosen(plan)
        whole, encoder = logits(model, tiny), neurons_of(model)
        with neurons_silenced(model, gone):
            wanted = logits(model, tiny)
        assert (wanted - whole).abs().max() > 1e-3
        before = model.num_parameters()
        remove_neurons(model, gone)
        assert torch.allclose(logits(model, tiny), wanted, atol=1e-4)
        # A row with its bias and a column of width 32; Moonshine's has a row for its gate as well.
        rows = 2 if tiny.name == "moonshine" else 1
        assert before - model.num_parameters() == len(gone) * (rows * 33 + 32)
        assert set(neurons_of(model, DECODER)) == set(neurons_of(tiny.build(), DECODER)) - set(gone)
        assert neurons_of(model) == encoder

    @every_plan
    @every_model
    def test_reloads_exactly_also_pruned_again(
        self, tiny: TinyModel, plan: str, tmp_path: Path
    ) -> None:
        model, gone = tiny.build(), chosen(plan)
        encoders = [Unit(1, 7, kind="neuron"), Unit(0, 2, kind="neuron")]
        remove_neurons(model, [*gone, *encoders])
        model.save_pretrained(tmp_path / "once")
        once = type(model).from_pretrained(tmp_path / "once")
        assert torch.equal(logits(once, tiny), logits(model, tiny))
        assert neurons_of(once, DECODER) == neurons_of(model, DECODER)
        left = neurons_of(once, DECODER)
        remove_neurons(once, [left[0], left[-1], *gone])  # those gone are passed over
        once.save_pretrained(tmp_path / "twice")
        twice = type(model).from_pretrained(tmp_path / "twice")
        assert torch.equal(logits(twice, tiny), logits(once, tiny))
        assert neurons_of(twice, DECODER) == left[1:-1]
        assert set(neurons_of(twice)) == set(neurons_of(tiny.build())) - set(encoders)

    def test_whisper_with_equal_layers_loads_without_hibprune(self, tmp_path: Path) -> None:
        tiny = by_name("whisper")
        model = tiny.build()
        remove_neurons(model, chosen("even"))
        assert model.config.decoder_ffn_dim == NEURONS - 4
        assert model.config.encoder_ffn_dim == NEURONS
        model.save_pretrained(tmp_path)
        # Without what importing hibprune reads, all is as transformers alone builds it.
        told = json.loads((tmp_path / "config.json").read_text())
        del told["pruned_decoder_neurons"]
        (tmp_path / "config.json").write_text(json.dumps(told))
        plain = type(model).from_pretrained(tmp_path)
        assert torch.equal(logits(plain, tiny), logits(model, tiny))

    @every_plan
    @every_model
    def test_cached_and_uncached_decoding_agree(self, tiny: TinyModel, plan: str) -> None:
        model = tiny.build()
        remove_neurons(model, chosen(plan))
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        cached, plain = (
            model.generate(**clip, max_new_tokens=8, do_sample=False, use_cache=use)
            for use in (True, False)
        )
        assert torch.equal(cached, plain)
        assert cached.shape[1] > 3

    @every_model
    def test_graphs_give_out_the_same(self, tiny: TinyModel, tmp_path: Path) -> None:
        """Of a layer with fewer neurons, and one without any."""
        model = tiny.build()
        remove_neurons(model, [*chosen("uneven"), *chosen("emptied")])
        (tmp_path / "onnx").mkdir()
        files = (ENCODER, MERGED_DECODER, *SETTINGS)
        export_onnx(model, tmp_path / "onnx", TASKS[tiny.auto_class], 18, files)
        exported = load_exported(tmp_path, "cpu", threads=1)
        clip = {tiny.main_input: tiny.inputs()[tiny.main_input]}
        wanted, found = outputs_of(model)(clip), outputs_of(exported)(clip)
        assert len(wanted) == 3
        for name, value in wanted.items():
            assert np.abs(found[name] - value).max() <= 1e-4 * np.abs(value).max(), name

    @pytest.mark.parametrize("place", [(LAYERS, 0), (0, NEURONS), (-1, 0)])
    def test_a_neuron_that_never_was_is_an_error(self, place: tuple[int, int]) -> None:
        for tiny in WITH_DECODER:
            with pytest.raises(IndexError):
                remove_neurons(tiny.build(), [neuron(*place)])

    def test_other_models_have_none(self) -> None:
        for tiny in TINY_MODELS:
            if not tiny.speaks:
                assert units_of(tiny.build(), "decoder_neuron") == ()
        model = TINY_MODELS[0].build()
        with pytest.raises(IndexError, match="neurons of encoder, not of decoder"):
            remove_neurons(model, [neuron(0, 0)])

    def test_a_configuration_that_contradicts_itself_is_an_error(self, tmp_path: Path) -> None:
        model = by_name("whisper").build()
        remove_neurons(model, chosen("uneven"))
        model.config.decoder_ffn_dim = 20
        model.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match="pruned_decoder_neurons speaks of 37 neurons of which 8 are gone"
        ):
            type(model).from_pretrained(tmp_path)
        told = {"0": [(NEURONS, "4000000000")]}
        config = by_name("moonshine").config(pruned_decoder_neurons=told)
        with pytest.raises(ValueError, match="never were"):
            transformers.AutoModelForSpeechSeq2Seq.from_config(config)


@dataclass
class Watched:
    """What a decoder layer's feed-forward takes in and gives out, in whole passes clip by clip."""

    model: PreTrainedModel
    layer: int
    streams: list[Tensor] = field(default_factory=list)
    written: list[Tensor] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)

    def passed(self, clips: Sequence[CalibrationClip]) -> tuple[Tensor, Tensor, Tensor]:
        """Stream in front, units' output and what is written (tokens, width), in float64."""
        layer = self.model.base_model.decoder.layers[self.layer]
        path = FEED_FORWARD_RESIDUAL[self.model.config.model_type]
        second = feed_forward_sites(self.model, DECODER)[self.layer].second

        def stream(_module: nn.Module, inputs: Any) -> None:
            self.streams.append(inputs[0][0])

        def wrote(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.units.append(inputs[0][0])
            self.written.append(output[0])

        handles = [
            layer.get_submodule(path).register_forward_pre_hook(stream),
            second.register_forward_hook(wrote),
        ]
        with torch.no_grad():
            for clip in clips:
                self.model(**clip.inputs, decoder_input_ids=clip.tokens)
        for handle in handles:
            handle.remove()
        found = (self.streams, self.units, self.written)
        return tuple(torch.cat(one).double() for one in found)  # type: ignore[return-value]


class TestRepair:
    @pytest.mark.parametrize("encoder_too", [False, True])
    @every_model
    def test_the_fit_is_ridge_regression_on_teacher_forced_tokens(
        self, tiny: TinyModel, encoder_too: bool, tmp_path: Path
    ) -> None:
        """The normal equations about the old weights, with the drift of all that lies below."""
        model, layer = tiny.build(), 1
        gone = [neuron(layer, index) for index in range(0, NEURONS, 3)]
        gone += [Unit(0, 1), Unit(0, 2)] if encoder_too else []
        smaller = copy_without(model, gone)
        anchor = feed_forward_sites(smaller, DECODER)[layer].second.weight.detach().double()
        clips = clips_of(tiny, 30)
        found = repaired(model, smaller, clips, tmp_path)
        report = next(
            one
            for one in found.sublayers
            if (one.stack, one.layer, one.kind) == (DECODER, layer, "neuron")
        )
        assert (report.refitted, report.removed, report.kept) == (True, 13, 24)
        assert report.strength is not None
        assert found.tokens == sum(8 + number % 4 for number in range(30))
        assert (found.frames > 0) == encoder_too
        before, _, wrote = Watched(model, layer).passed(clips)
        stream, z, _ = Watched(smaller, layer).passed(clips)
        wanted = before + wrote - stream
        centred, u = z - z.mean(0), wanted - wanted.mean(0)
        second = centred.T @ centred
        ridge = report.strength * float(second.diagonal().mean())
        expected = torch.from_numpy(
            np.linalg.solve(
                (second + ridge * torch.eye(len(second))).numpy(),
                (u.T @ centred + ridge * anchor).T.numpy(),
            ).T
        )
        fitted = feed_forward_sites(smaller, DECODER)[layer].second
        assert (fitted.weight - expected).abs().max() < 1e-3 * expected.abs().max()
        assert fitted.bias is not None
        bias = wanted.mean(0) - expected @ z.mean(0)
        assert (fitted.bias - bias).abs().max() < 1e-3 * wanted.abs().max()

    @pytest.mark.parametrize("room", [2**30, 0])
    @pytest.mark.parametrize("encoder_too", [False, True])
    @every_model
    def test_what_comes_out_is_nearer_to_the_original(
        self, tiny: TinyModel, encoder_too: bool, room: int, tmp_path: Path
    ) -> None:
        model = tiny.build()
        gone = [neuron(0, index) for index in range(0, NEURONS, 2)]
        gone += [Unit(1, 1), Unit(0, 4, kind="neuron")] if encoder_too else []
        smaller = copy_without(model, gone)
        clips, others = clips_of(tiny, 40)[:30], clips_of(tiny, 40)[30:]
        wanted = last_states(model, others)
        before = (last_states(smaller, others) - wanted).square().mean()
        old = {name: weight.clone() for name, weight in smaller.state_dict().items()}
        found = repaired(model, smaller, clips, tmp_path, room=room)
        assert (last_states(smaller, others) - wanted).square().mean() < before
        moved = {
            name
            for name, weight in smaller.state_dict().items()
            if not torch.equal(weight, old[name])
        }
        # What writes into the stream: no queries, keys, first matrices, norms, tables.
        assert all(any(part in name for part in ("out_proj", "o_proj", "fc2")) for name in moved)
        assert any(".decoder." in name and "fc2" in name for name in moved)
        assert any(".encoder." in name for name in moved) == encoder_too
        named = {(one.layer, one.name) for one in found.sublayers if one.stack != "encoder"}
        in_front = {(0, "decoder cross-attention")} if encoder_too else set()
        assert named == in_front | {
            (0, "decoder feed-forward"),
            (1, "decoder self-attention"),
            (1, "decoder cross-attention"),
            (1, "decoder feed-forward"),
        }
        assert not list(tmp_path.iterdir()) or room == 0

    @every_model
    def test_a_decoder_that_lost_nothing_is_left_alone(
        self, tiny: TinyModel, tmp_path: Path
    ) -> None:
        """And wants no transcripts."""
        model = tiny.build()
        smaller = copy_without(model, [Unit(0, 1)])
        clips = [CalibrationClip(clip.inputs) for clip in clips_of(tiny, 10)]
        found = repaired(model, smaller, clips, tmp_path)
        assert {one.stack for one in found.sublayers} == {"encoder"}
        assert found.tokens == 0
        for name, weight in model.base_model.decoder.state_dict().items():
            assert torch.equal(weight, smaller.base_model.decoder.state_dict()[name]), name

    @pytest.mark.parametrize("kind", ["mean", "scale", "least-squares"])
    def test_a_layer_that_lost_all_writes_what_is_best_on_average(
        self, kind: str, tmp_path: Path
    ) -> None:
        tiny = by_name("whisper")
        model = tiny.build()
        smaller = copy_without(model, chosen("emptied"))
        clips = clips_of(tiny, 20)
        repaired(model, smaller, clips, tmp_path, kind)
        before, _, wrote = Watched(model, 1).passed(clips)
        stream, _, _ = Watched(smaller, 1).passed(clips)
        bias = feed_forward_sites(smaller, DECODER)[1].second.bias
        assert bias is not None
        assert torch.allclose(bias.double(), (before + wrote - stream).mean(0), atol=1e-4)


class TestScores:
    @every_model
    def test_the_first_that_goes_is_the_one_whose_best_repair_misses_least(
        self, tiny: TinyModel
    ) -> None:
        model = tiny.build()
        clips, samples = samples_of(tiny)
        method = Reconstruction(method="reconstruction")
        found = method.attribute(model, samples, no_loss, Session(), "decoder_neuron").values
        assert tuple(found) == neurons_of(model, DECODER)
        for layer in range(LAYERS):
            stream, z, wrote = Watched(model, layer).passed(clips)
            after = stream + wrote
            spread = (after - after.mean(0)).square().sum()
            misses = []
            for index in range(NEURONS):
                others = np.delete((z - z.mean(0)).numpy(), index, axis=1)
                u = (wrote - wrote.mean(0)).numpy()
                fit, *_ = np.linalg.lstsq(others, u, rcond=None)
                misses.append(((u - others @ fit) ** 2).sum() / float(spread))
            own = [found[neuron(layer, index)] for index in range(NEURONS)]
            least = int(np.argmin(misses))
            assert int(np.argmin(own)) == least
            assert own[least] == pytest.approx(misses[least], rel=1e-2)

    @every_model
    def test_slopes_are_those_of_the_loss_when_a_neuron_is_turned_down(
        self, tiny: TinyModel
    ) -> None:
        model, (_, samples) = tiny.build(), samples_of(tiny, 2)
        method = Taylor(method="taylor", batch_size=1)
        found = method.attribute(model, samples, loss, Session(), "decoder_neuron").values
        assert tuple(found) == neurons_of(model, DECODER)
        for unit in (neuron(0, 3), neuron(1, 20)):
            slopes = [turned(model, sample, unit) for sample in samples]
            assert found[unit] == pytest.approx(np.mean(np.abs(slopes)), rel=2e-2, abs=2e-5)

    @every_model
    def test_magnitude_is_of_all_rows_and_the_column(self, tiny: TinyModel) -> None:
        model = tiny.build()
        method = Magnitude(method="magnitude")
        found = method.attribute(model, [], no_loss, Session(), "decoder_neuron").values
        for unit in (neuron(0, 0), neuron(1, 36)):
            site = feed_forward_sites(model, DECODER)[unit.layer]
            rows = site.first.weight.detach()[unit.index :: NEURONS]
            column = site.second.weight.detach()[:, unit.index]
            assert len(rows) == (2 if tiny.name == "moonshine" else 1)
            assert found[unit] == pytest.approx(float(rows.norm() * column.norm()), rel=1e-5)


def turned(model: PreTrainedModel, sample: Sample, unit: Unit) -> float:
    """Slope of the loss by a central difference, as a neuron's output is scaled about 1."""
    second = feed_forward_sites(model, DECODER)[unit.layer].second
    losses = []
    for factor in (1.1, 0.9):

        def scale(_module: nn.Module, inputs: Any, factor: float = factor) -> Any:
            states = inputs[0].clone()
            states[..., unit.index] *= factor
            return (states, *inputs[1:])

        handle = second.register_forward_pre_hook(scale)
        batch = Batch(
            ids=("x",), inputs=sample.inputs, targets=(sample.target,), frames=(), logits=()
        )
        with torch.no_grad():
            losses.append(float(loss(model, batch)))
        handle.remove()
    return (losses[0] - losses[1]) / 0.2
