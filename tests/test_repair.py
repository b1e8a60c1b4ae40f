"""Repair of every family: what least squares promise holds in the repaired model itself.

Checked by hooks of the tests' own on whole passes through both models, not on the layer-wise ones
that the repair makes.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from repairs import repaired
from tiny_models import HEAD_SIZE, HEADS, TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.neuron_pruning import remove_neurons
from hibprune.compression.remove import copy_without
from hibprune.errors import UserError
from hibprune.execution.processes import Processes
from hibprune.models import layerwise
from hibprune.models.attention import attention_sites, positions_fitted, run_encoder
from hibprune.models.feed_forward import feed_forward_sites
from hibprune.models.layerwise import CalibrationClip
from hibprune.records.repair import Repair
from hibprune.records.units import Unit

every_model = pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
NEURONS = 37
GONE = {
    "heads": [Unit(0, 1), Unit(0, 2), Unit(1, 0)],
    "neurons": [Unit(0, index, kind="neuron") for index in range(0, NEURONS, 3)],
    "both": [Unit(0, 3), *(Unit(1, index, kind="neuron") for index in range(0, NEURONS, 2))],
    "a layer emptied": [*(Unit(0, index) for index in range(HEADS)), Unit(1, 2, kind="neuron")],
}


def by_name(name: str) -> TinyModel:
    return next(tiny for tiny in TINY_MODELS if tiny.name == name)


def clips_of(tiny: TinyModel, count: int = 10) -> list[CalibrationClip]:
    """Clips that differ, of two lengths where the family takes any."""
    generator = torch.Generator().manual_seed(7)
    clips = []
    for number in range(count):
        shape = tiny.inputs(batch=1)[tiny.main_input].shape
        if tiny.takes in ("waveform", "tokens") and number % 3 == 2:
            shape = (1, 4 * shape[1] // 5)
        if tiny.takes == "tokens":
            content = torch.randint(2, 40, shape, generator=generator)
        else:
            content = torch.randn(shape, generator=generator)
        clips.append(CalibrationClip({tiny.main_input: content}))
    return clips


def without(model: PreTrainedModel, gone: Sequence[Unit]) -> PreTrainedModel:
    smaller = copy_without(model, [unit for unit in gone if unit.kind == "head"])
    remove_neurons(smaller, [unit for unit in gone if unit.kind == "neuron"])
    return smaller


def hidden(model: PreTrainedModel, clips: Sequence[CalibrationClip]) -> Tensor:
    """What the encoder's last layer gives out, over all frames of all clips."""
    layers = layerwise.encoder_layers(model)
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
        found.append((outputs[0] if isinstance(outputs, tuple) else outputs).flatten(0, 1))

    handle = layers[-1].register_forward_hook(keep)
    with torch.no_grad():
        for clip in clips:
            run_encoder(model, clip.inputs)
    handle.remove()
    return torch.cat(found)


def test_a_model_that_lost_nothing_stays_itself(tmp_path: Path) -> None:
    for tiny in TINY_MODELS:
        model = tiny.build()
        same = copy.deepcopy(model)
        found = repaired(model, same, clips_of(tiny), tmp_path)
        assert found.sublayers == ()
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, same.state_dict()[name]), name


@pytest.mark.parametrize(
    ("tiny", "gone"),
    [
        pytest.param(tiny, units, id=f"{tiny.name}-{plan}")
        for tiny in TINY_MODELS
        for plan, units in GONE.items()
        if tiny.name in ("wav2vec2", "conformer-relative", "moonshine")
        or plan in ("both", "a layer emptied")
    ],
)
def test_what_comes_out_is_nearer_to_the_original(
    tiny: TinyModel, gone: list[Unit], tmp_path: Path
) -> None:
    model = tiny.build()
    smaller = without(model, gone)
    clips, others = clips_of(tiny, 16)[:10], clips_of(tiny, 16)[10:]
    wanted = hidden(model, others)
    before = (hidden(smaller, others) - wanted).square().mean()
    shapes = {name: weight.shape for name, weight in smaller.state_dict().items()}
    moving = {name: weight.clone() for name, weight in smaller.state_dict().items()}
    found = repaired(model, smaller, clips, tmp_path)
    after = (hidden(smaller, others) - wanted).square().mean()
    assert after < before
    assert {name: weight.shape for name, weight in smaller.state_dict().items()} == shapes
    writers = [site.output for site in attention_sites(smaller)]
    writers += [site.second for site in feed_forward_sites(smaller)]
    own = {id(weight) for writer in writers for weight in writer.parameters()}
    for name, weight in smaller.named_parameters():
        assert id(weight) in own or torch.equal(weight, moving[name]), name
    assert all(one.after <= one.before for one in found.sublayers)
    assert all((one.after < one.before) == one.refitted for one in found.sublayers)
    lost = {(one.layer, one.kind): 0 for one in found.sublayers}
    for one in found.sublayers:
        lost[one.layer, one.kind] += one.removed
    for (layer, kind), count in lost.items():
        assert count == sum(unit.layer == layer and unit.kind == kind for unit in gone)


def copy_head(model: PreTrainedModel, source: int, target: int) -> None:
    """Let a head of the first layer say what another one says, in all that is a head's own."""
    module: Any = attention_sites(model)[0].module
    rows = ("q_proj", "k_proj", "v_proj", "linear_q", "linear_k", "linear_v", "linear_pos")
    rows = (*rows, "query", "key", "value", "q_lin", "k_lin", "v_lin")
    one, other = (slice(n * HEAD_SIZE, (n + 1) * HEAD_SIZE) for n in (source, target))
    with torch.no_grad():
        for name in rows:
            for weight in getattr(module, name, nn.Identity()).parameters():
                weight[other] = weight[one]
        for name in ("pos_bias_u", "pos_bias_v"):
            if hasattr(module, name):
                getattr(module, name)[target] = getattr(module, name)[source]
        if hasattr(module, "gru_rel_pos_const"):
            # WavLM's gate looks at each head's own part of its input: a head that says a constant.
            module.v_proj.weight[other] = 0


@every_model
def test_what_others_can_say_goes_for_nothing(tiny: TinyModel, tmp_path: Path) -> None:
    model = tiny.build()
    copy_head(model, 0, 2)
    for site in feed_forward_sites(model):
        with torch.no_grad():
            for weight in site.first.parameters():
                weight[5] = weight[9]
    clips = clips_of(tiny, 12)
    wanted = hidden(model, clips)
    gone = [Unit(0, 2)] + [
        Unit(site.layer, NEURONS * site.part + 5, kind="neuron")
        for site in feed_forward_sites(model)
    ]
    smaller = without(model, gone)
    assert (hidden(smaller, clips) - wanted).abs().max() > 1e-2
    found = repaired(model, smaller, clips, tmp_path)
    assert (hidden(smaller, clips) - wanted).abs().max() < 1e-3
    assert all(one.after < 1e-6 for one in found.sublayers)


STREAMS = {
    "wav2vec2": ("layer_norm", "final_layer_norm"),
    "wav2vec2-stable": ("final_layer_norm", ""),
    "wavlm": ("layer_norm", "final_layer_norm"),
    "whisper": ("final_layer_norm", ""),
    "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
    "distilbert": ("sa_layer_norm", "output_layer_norm"),
    "ast": ("layernorm_after", ""),
    "moonshine": ("post_attention_layernorm", ""),
}
"""Norms whose input is the stream behind attention, and behind the feed-forward: of post-norm
models; of pre-norm ones the latter is what the layer gives out."""


class Watched:
    """Streams behind the sublayers of a layer and what goes into its writers, of whole passes."""

    def __init__(self, model: PreTrainedModel, layer: int, paths: tuple[str, str]) -> None:
        self.streams: list[list[Tensor]] = [[], []]
        self.units: list[list[Tensor]] = [[], []]
        module = layerwise.encoder_layers(model)[layer]
        for place, path in enumerate(paths):
            if path:
                module.get_submodule(path).register_forward_pre_hook(self._stream(place))
            else:
                module.register_forward_hook(self._output(place))
        self.writers = (
            attention_sites(model)[layer].output,
            feed_forward_sites(model)[layer].second,
        )
        for place, writer in enumerate(self.writers):
            writer.register_forward_pre_hook(self._unit(place))

    def _stream(self, place: int) -> Any:
        return lambda _, inputs: self.streams[place].append(inputs[0].flatten(0, 1))

    def _output(self, place: int) -> Any:
        return lambda _m, _i, outputs: self.streams[place].append(
            (outputs[0] if isinstance(outputs, tuple) else outputs).flatten(0, 1)
        )

    def _unit(self, place: int) -> Any:
        return lambda _, inputs: self.units[place].append(inputs[0].flatten(0, 1))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", STREAMS)
def test_streams_obey_the_normal_equations(name: str, layer: int, tmp_path: Path) -> None:
    """With e what the repaired stream still misses of the original's: Σe = 0, Σe(z−z̄)ᵀ = λ(V−W).

    e holds the drift of all layers below, and the ridge draws towards the old weights.
    """
    tiny = by_name(name)
    model = tiny.build()
    smaller = without(model, [Unit(0, 1), Unit(0, 2), *GONE["neurons"]])
    old = [site.output.weight.detach().clone() for site in attention_sites(smaller)]
    old_second = [site.second.weight.detach().clone() for site in feed_forward_sites(smaller)]
    clips = clips_of(tiny, 30)
    found = repaired(model, smaller, clips, tmp_path)
    whole, fitted = (Watched(one, layer, STREAMS[name]) for one in (model, smaller))
    with torch.no_grad():
        for clip in clips:
            run_encoder(model, clip.inputs)
            run_encoder(smaller, clip.inputs)
    for place, anchor in enumerate((old[layer], old_second[layer])):
        report = next(
            one
            for one in found.sublayers
            if (one.layer, one.kind) == (layer, ("head", "neuron")[place])
        )
        if not report.refitted:
            assert layer == 1
            assert torch.equal(fitted.writers[place].weight, anchor)
            continue
        assert report.strength is not None
        e = (torch.cat(whole.streams[place]) - torch.cat(fitted.streams[place])).double().numpy()
        z = torch.cat(fitted.units[place]).double().numpy()
        writer: Any = fitted.writers[place]
        moved = (writer.weight - anchor).detach().double().numpy()
        centred = z - z.mean(0) if writer.bias is not None else z
        ridge = report.strength * (centred**2).sum() / z.shape[1]
        size = np.abs(e).sum() / len(e)
        assert size > 0
        if writer.bias is not None:
            assert np.abs(e.mean(0)).max() < 1e-5 * size
        np.testing.assert_allclose(
            e.T @ centred, ridge * moved, atol=1e-4 * size * np.sqrt((centred**2).sum())
        )


def test_a_bias_alone_restores_the_mean_and_factors_do_better(tmp_path: Path) -> None:
    tiny = by_name("wav2vec2-stable")
    model, clips = tiny.build(), clips_of(by_name("wav2vec2-stable"), 15)
    errors = {}
    for kind in ("mean", "scale", "least-squares"):
        smaller = without(model, [*GONE["both"], Unit(1, 0)])
        weights = [site.output.weight.detach().clone() for site in attention_sites(smaller)]
        found = repaired(model, smaller, clips, tmp_path, kind)
        errors[kind] = sum(one.after for one in found.sublayers)
        for site, weight in zip(attention_sites(smaller), weights, strict=True):
            factors = site.output.weight / weight
            per_head = factors.unflatten(1, (-1, HEAD_SIZE)).detach()
            if kind == "mean":
                assert torch.equal(site.output.weight, weight)
            if kind == "scale":
                assert per_head.std((0, 2)).max() < 1e-4
                assert (per_head.mean((0, 2)) - 1).abs().max() > 1e-3
        assert (hidden(smaller, clips) - hidden(model, clips)).mean(0).abs().max() < 1e-3
        assert all(one.strength is None for one in found.sublayers) == (kind != "least-squares")
    assert errors["least-squares"] < errors["scale"] < errors["mean"]


@every_model
def test_states_in_files_give_the_same_weights(tiny: TinyModel, tmp_path: Path) -> None:
    """Without memory, nothing is taken from earlier passes through a layer either."""
    model, clips = tiny.build(), clips_of(tiny)
    kept, filed = (without(model, GONE["both"]) for _ in range(2))
    passes = {"kept": 0, "filed": 0}
    for name, smaller in (("kept", kept), ("filed", filed)):

        def count(*_: object, name: str = name) -> None:
            passes[name] += 1

        for site in attention_sites(smaller):
            site.value.register_forward_hook(count)
    assert repaired(model, kept, clips, tmp_path / "none") == repaired(
        model, filed, clips, tmp_path / "files", room=0
    )
    assert passes["kept"] < passes["filed"]
    assert not (tmp_path / "none").exists()
    assert any((tmp_path / "files").iterdir())
    for one, other in zip(kept.parameters(), filed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_scratch_does_not_grow_with_the_layers(tmp_path: Path) -> None:
    tiny = by_name("wav2vec2")
    model, clips = tiny.build(), clips_of(tiny)
    sizes = []
    repaired(
        model,
        without(model, [Unit(0, 0)]),
        clips,
        tmp_path,
        room=0,
        progress=lambda done, total: sizes.append((done, total, len(list(tmp_path.iterdir())))),
    )
    assert [size[:2] for size in sizes] == [(1, 2), (2, 2)]
    assert sizes[0][2] == sizes[1][2]


def test_clips_one_by_one_and_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = by_name("hubert")
    model, clips = tiny.build(), clips_of(tiny)
    together, alone = (without(model, GONE["both"]) for _ in range(2))
    repaired(model, together, clips, tmp_path)
    monkeypatch.setattr(layerwise, "CLIPS_AT_ONCE", 1)
    repaired(model, alone, clips, tmp_path)
    assert torch.allclose(hidden(together, clips), hidden(alone, clips), atol=1e-4)


def test_clips_that_are_padded_and_say_so_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Equal shapes under different masks: each layer is handed another one."""
    tiny = by_name("bert")
    model, texts = tiny.build(), clips_of(tiny)
    masked = []
    for number, clip in enumerate(texts):
        tokens = clip.inputs["input_ids"]
        mask = torch.ones_like(tokens)
        if number % 2:
            mask[:, tokens.shape[1] // 2 :] = 0
        masked.append(CalibrationClip({"input_ids": tokens, "attention_mask": mask}))
    smaller = without(model, [Unit(1, 1), Unit(1, 2)])
    assert repaired(model, smaller, masked, tmp_path).sublayers[0].refitted
    watched = [Watched(one, 1, STREAMS["bert"]) for one in (model, smaller)]
    with torch.no_grad():
        for clip in masked:
            for one in (model, smaller):
                run_encoder(one, clip.inputs)
    missed = torch.cat(watched[0].streams[0]) - torch.cat(watched[1].streams[0])
    assert missed.mean(0).abs().max() < 1e-5 * missed.abs().max()


def test_frames_behind_a_clip_weigh_a_quarter(tmp_path: Path) -> None:
    tiny = by_name("whisper")
    model = tiny.build()
    own = 13
    clips = [CalibrationClip(clip.inputs, own) for clip in clips_of(tiny)]
    smaller = without(model, [Unit(0, 1), Unit(0, 2)])
    found = repaired(model, smaller, clips, tmp_path)
    padding = range(own, 40, 4)
    assert found.frames == len(clips) * (own + len(padding))
    counted = [*range(own), *padding]
    watched = [Watched(one, 0, STREAMS["whisper"]) for one in (model, smaller)]
    with torch.no_grad():
        for clip in clips:
            for one in (model, smaller):
                run_encoder(one, clip.inputs)
    one, other = (torch.cat(watch.streams[0]).unflatten(0, (-1, 40)) for watch in watched)
    missed = one - other
    assert missed[:, counted].mean((0, 1)).abs().max() < 1e-5 * missed.abs().max()
    assert missed.mean((0, 1)).abs().max() > 1e-4 * missed.abs().max()


def test_chunked_feed_forwards_are_repaired_as_whole_ones(tmp_path: Path) -> None:
    tiny = by_name("bert")
    model, clips = tiny.build(), clips_of(tiny)
    chunked = copy.deepcopy(model)
    for layer in layerwise.encoder_layers(chunked):
        layer.chunk_size_feed_forward = 5  # type: ignore[assignment]
    clips = [clip for clip in clips if clip.inputs["input_ids"].shape[1] % 5 == 0]
    results = []
    for one in (model, chunked):
        smaller = without(one, GONE["both"])
        repaired(one, smaller, clips, tmp_path)
        results.append(hidden(smaller, clips))
    assert torch.allclose(*results, atol=1e-5)
    assert layerwise.encoder_layers(chunked)[0].chunk_size_feed_forward == 5


@dataclass(frozen=True)
class InThread(Processes):
    """One of several processes, in threads of one process, each with its part of what is summed."""

    parts: dict[int, Tensor] = field(default_factory=dict)
    barrier: threading.Barrier | None = None

    def summed(self, own: Tensor) -> Tensor:
        assert self.barrier is not None
        self.parts[self.number] = own.clone()
        self.barrier.wait(60)
        total = torch.stack([self.parts[number] for number in range(self.count)]).sum(0)
        self.barrier.wait(60)
        return total


def test_processes_that_share_the_clips_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = by_name("wav2vec2")
    monkeypatch.setattr(layerwise, "CLIPS_AT_ONCE", 3)
    model, clips = tiny.build(), clips_of(tiny)
    alone = without(model, GONE["both"])
    wanted = repaired(model, alone, clips, tmp_path / "alone")
    barrier = threading.Barrier(2)
    parts: dict[int, Tensor] = {}
    models = [without(model, GONE["both"]) for _ in range(2)]
    originals = [copy.deepcopy(model) for _ in range(2)]
    reports: dict[int, Repair] = {}

    def work(number: int) -> None:
        processes = InThread(number, 2, parts, barrier)
        reports[number] = repaired(
            originals[number], models[number], clips, tmp_path / str(number), processes=processes
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert torch.allclose(hidden(models[0], clips), hidden(alone, clips), atol=1e-4)
    assert (reports[0].clips, reports[0].held_out) == (wanted.clips, wanted.held_out)
    for one, other in zip(reports[0].sublayers, wanted.sublayers, strict=True):
        assert one.strength == other.strength
        assert one.after == pytest.approx(other.after, rel=1e-4)


def test_too_few_frames_is_a_plain_line_and_nothing_changes(tmp_path: Path) -> None:
    tiny = by_name("wav2vec2")
    model, clips = tiny.build(), clips_of(tiny, 1)
    smaller = without(model, [Unit(0, 0)])
    before = {name: weight.clone() for name, weight in smaller.state_dict().items()}
    with pytest.raises(UserError) as caught:
        repaired(model, smaller, clips, tmp_path)
    line = str(caught.value)
    assert line.startswith(
        "removal.repair: 25 frames of calibration data are too few to fit the 37 unknowns of layer "
        "0's feed-forward: give it about 3 samples of this length (calibration.repair_samples), or "
    )
    assert "\n" not in line
    assert all(torch.equal(weight, smaller.state_dict()[name]) for name, weight in before.items())
    assert not any(tmp_path.iterdir())


def test_numbers_that_are_none_are_a_plain_line(tmp_path: Path) -> None:
    tiny = by_name("wav2vec2")
    model = tiny.build()
    smaller = without(model, [Unit(0, 0)])
    clips = clips_of(tiny)
    clips[3].inputs["input_values"][0, 40] = torch.nan
    with pytest.raises(UserError, match=r"^removal.repair: layer 0's attention gives out NaN"):
        repaired(model, smaller, clips, tmp_path)
    assert not model.training
    assert all(not layer._forward_pre_hooks for layer in layerwise.encoder_layers(smaller))


def test_silence_and_dead_units_do_not_break_it(tmp_path: Path) -> None:
    tiny = by_name("wav2vec2-stable")
    model = tiny.build()
    with torch.no_grad():
        site = feed_forward_sites(model)[0]
        site.first.weight[:] = 0
    smaller = without(model, GONE["both"])
    clips = [CalibrationClip({"input_values": torch.zeros(1, 4000)}) for _ in range(10)]
    found = repaired(model, smaller, clips, tmp_path)
    assert all(np.isfinite(one.after) for one in found.sublayers)
    assert all(torch.isfinite(weight).all() for weight in smaller.parameters())


def test_whispers_window_is_filled_and_the_clip_told(tmp_path: Path) -> None:
    """As `positions_fitted` lets it run on fewer frames where it is given fewer."""
    tiny = by_name("whisper")
    model = tiny.build()
    short = tiny.inputs(batch=1)["input_features"][..., :30]
    with positions_fitted(model, {"input_features": short}):
        assert model.config.max_source_positions == 15
    clips = [CalibrationClip({"input_features": short + n}) for n in range(10)]
    found = repaired(model, without(model, [Unit(0, 1)]), clips, tmp_path)
    assert found.frames == 10 * 15
