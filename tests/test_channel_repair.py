"""Scores and repair of channels: unfolded windows, least squares and what they promise.

Checked against torch's convolution, numpy's least squares and whole passes through both models.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from front_ends import FRONT_ENDS, GROUP_NORM, built, front_end
from test_channel_pruning import GONE, channels
from test_repair import InThread, clips_of, hidden, repaired
from tiny_models import TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.methods import Magnitude, Random, Reconstruction
from hibprune.attribution.sensitivity import channel_gradients
from hibprune.attribution.session import Sample, Session
from hibprune.compression.remove import copy_without
from hibprune.errors import UserError
from hibprune.models import front_end_passes, layerwise
from hibprune.models.front_end import FrontEndPart, channels_of, front_end_parts
from hibprune.models.front_end_passes import window_moments, window_step
from hibprune.models.layerwise import CalibrationClip, ClipBatch
from hibprune.models.moments import Moments
from hibprune.records.repair import Repair
from hibprune.records.units import FRONT_END, Unit
from hibprune.tasks import Batch

every_front_end = pytest.mark.parametrize("tiny", FRONT_ENDS, ids=lambda tiny: tiny.name)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 2), (10, 5), (4, 7)])
def test_unfolded_windows_are_what_a_convolution_multiplies_with(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv1d(5, 7, kernel, stride).double()
    part = FrontEndPart(1, nn.Identity(), convolution, None, channels({0: tuple(range(5))}), ())  # type: ignore[arg-type]
    for samples in (kernel, 23, 24, 40):
        inputs = torch.randn(3, 5, samples, dtype=torch.float64)
        windows = part.windows(inputs)
        assert windows.shape == (3, part.frames(samples), 5, kernel)
        rows = windows.flatten(2) @ convolution.weight.flatten(1).T + convolution.bias
        wanted = nn.functional.conv1d(inputs, convolution.weight, convolution.bias, stride)
        assert torch.allclose(rows.transpose(1, 2), wanted, atol=1e-12)
        # A channel's block is all that it brings in.
        block = part.blocks[2]
        alone = inputs * (torch.arange(5) == 2)[:, None]
        share = windows.flatten(2)[..., block] @ convolution.weight.flatten(1)[:, block].T
        silent = nn.functional.conv1d(alone, convolution.weight, None, stride)
        assert torch.allclose(share.transpose(1, 2), silent, atol=1e-12)
    assert part.frames(kernel - 1) == 0


class Watched:
    """What goes into and comes out of a front end's matrices, in whole passes."""

    def __init__(self, model: PreTrainedModel, clips: Sequence[CalibrationClip]) -> None:
        base = model.base_model
        self.writers = [layer.conv for layer in base.feature_extractor.conv_layers]
        self.writers.append(base.feature_projection.projection)
        caught: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in self.writers]
        handles = [
            writer.register_forward_hook(self._keep(caught[place]))
            for place, writer in enumerate(self.writers)
        ]
        with torch.no_grad():
            for clip in clips:
                model(**clip.inputs)
        for handle in handles:
            handle.remove()
        self.inputs = [np.concatenate([one[0] for one in own]) for own in caught]
        self.outputs = [np.concatenate([one[1] for one in own]) for own in caught]

    @staticmethod
    def _keep(own: list[tuple[np.ndarray, np.ndarray]]) -> Any:
        def hook(writer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            z, u = inputs[0][0].double().numpy(), output[0].double().numpy()
            if isinstance(writer, nn.Conv1d):
                slid = np.lib.stride_tricks.sliding_window_view(z, writer.kernel_size[0], axis=1)
                slid = slid[:, :: writer.stride[0]]
                z, u = slid.transpose(1, 0, 2).reshape(slid.shape[1], -1), u.T
            own.append((z, u))

        return hook


def kept_rows(layer: int, width: int) -> list[int]:
    return [i for i in range(width) if i not in GONE.get(layer, ())]


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-stable-bias", "data2vec-audio"])
def test_every_fit_is_numpys_ridge_about_the_old_weights(name: str, tmp_path: Path) -> None:
    """On the repaired model's own windows and the original's outputs of the channels that stay."""
    tiny = front_end(name)
    model, clips = built(tiny), clips_of(tiny, 40)
    smaller = copy_without(model, channels(GONE))
    old = [part.writer.weight.detach().flatten(1).double() for part in front_end_parts(smaller)]
    found = repaired(model, smaller, clips, tmp_path)
    whole, fitted = Watched(model, clips), Watched(smaller, clips)
    for place in (1, 2, 3):
        report = found.sublayers[place - 1]
        assert (report.layer, report.kind, report.refitted) == (place, "channel", True)
        assert report.strength is not None
        z, u, writer = fitted.inputs[place], whole.outputs[place], fitted.writers[place]
        if place < 3:
            u = u[:, kept_rows(place, u.shape[1])]
        w = old[place].numpy()
        with_bias = writer.bias is not None
        mean, target = (z.mean(0), u.mean(0)) if with_bias else (0 * z[0], 0 * u[0])
        strength = report.strength * ((z - mean) ** 2).sum() / z.shape[1]
        design = np.vstack([z - mean, np.sqrt(strength) * np.eye(z.shape[1])])
        right = np.vstack([u - target, np.sqrt(strength) * w.T])
        expected = np.linalg.lstsq(design, right, rcond=None)[0].T
        actual = writer.weight.detach().flatten(1).double().numpy()
        np.testing.assert_allclose(actual, expected, atol=2e-4 * np.abs(w).max())
        if with_bias:
            bias = writer.bias.detach().double().numpy()
            np.testing.assert_allclose(bias, target - expected @ mean, atol=1e-4)


@every_front_end
def test_what_comes_out_is_nearer_and_only_readers_move(tiny: TinyModel, tmp_path: Path) -> None:
    model = built(tiny)
    smaller = copy_without(model, [*channels(GONE), Unit(1, 1), Unit(0, 3, kind="neuron")])
    clips, others = clips_of(tiny, 40)[:30], clips_of(tiny, 40)[30:]
    wanted = hidden(model, others)
    before = (hidden(smaller, others) - wanted).square().mean()
    old = {name: weight.clone() for name, weight in smaller.state_dict().items()}
    found = repaired(model, smaller, clips, tmp_path)
    assert (hidden(smaller, others) - wanted).square().mean() < before
    assert [(one.layer, one.name, one.removed) for one in found.sublayers[:3]] == [
        (1, "convolution", 4), (2, "convolution", 3), (3, "feature projection", 1),
    ]  # fmt: skip
    assert all(one.after <= one.before for one in found.sublayers)
    # All of the encoder's sublayers see what has drifted.
    encoder = [one for one in found.sublayers if one.kind != "channel"]
    assert {one.layer for one in encoder} == {0, 1}
    for name, weight in smaller.state_dict().items():
        assert weight.shape == old[name].shape
        front = any(part in name for part in ("feature_", "pos_conv"))
        reads = any(part in name for part in ("layers.1.conv", "layers.2.conv", "projection.proj"))
        if front and not reads:
            assert torch.equal(weight, old[name]), name


@pytest.mark.parametrize("tiny", GROUP_NORM, ids=lambda tiny: tiny.name)
def test_a_copy_of_another_channel_goes_for_nothing(tiny: TinyModel, tmp_path: Path) -> None:
    """Where no norm is over channels: behind the last layer there is one in most variants."""
    model, clips = built(tiny), clips_of(tiny, 30)
    bare = not getattr(model.config, "feat_proj_layer_norm", True)
    copied = {0: (3, 7), 1: (19, 2), **({2: (5, 0)} if bare else {})}
    with torch.no_grad():
        for layer, (target, source) in copied.items():
            for weight in model.base_model.feature_extractor.conv_layers[layer].parameters():
                weight[target] = weight[source]
    scores = scored(model, tiny, clips, Reconstruction(method="reconstruction"))
    smaller = copy_without(model, channels({layer: (one,) for layer, (one, _) in copied.items()}))
    wanted = hidden(model, clips)
    assert (hidden(smaller, clips) - wanted).abs().max() > 1e-2
    found = repaired(model, smaller, clips, tmp_path)
    assert (hidden(smaller, clips) - wanted).abs().max() < 2e-3
    assert all(one.after < 1e-6 for one in found.sublayers)
    for layer, pair in copied.items():
        own = {unit.index: score for unit, score in scores.items() if unit.layer == layer}
        lowest = min(own, key=lambda index: own[index])
        assert lowest in pair
        assert own[lowest] < 1e-3 * sorted(own.values())[1]


def scored(
    model: PreTrainedModel, tiny: TinyModel, clips: Sequence[CalibrationClip], method: Any
) -> dict[Unit, float]:
    samples = [Sample(str(n), dict(clip.inputs), 0) for n, clip in enumerate(clips)]
    found = method.attribute(model, samples, no_loss, Session(), "channel")
    assert found.heads == channels_of(model)
    return dict(found.values)


def no_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    raise AssertionError("no loss is needed")


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-bias"])
def test_the_first_to_go_costs_what_numpy_says_the_others_miss_of_it(name: str) -> None:
    tiny = front_end(name)
    model, clips = built(tiny), clips_of(tiny, 30)
    scores = scored(model, tiny, clips, Reconstruction(method="reconstruction"))
    watched = Watched(model, clips)
    for place in (1, 2, 3):
        z, u, writer = watched.inputs[place], watched.outputs[place], watched.writers[place]
        spread = ((u - u.mean(0)) ** 2).sum(1).mean()
        if writer.bias is not None:
            z, u = z - z.mean(0), u - u.mean(0)
        size = writer.kernel_size[0] if isinstance(writer, nn.Conv1d) else 1
        missed = []
        for channel in range(z.shape[1] // size):
            rest = np.delete(z, range(channel * size, (channel + 1) * size), axis=1)
            fit = np.linalg.lstsq(rest, u, rcond=None)[0]
            missed.append(((u - rest @ fit) ** 2).sum(1).mean() / spread)
        own = {unit.index: score for unit, score in scores.items() if unit.layer == place - 1}
        lowest = min(own, key=lambda index: own[index])
        if place == 3:
            # The norm in front makes each channel what the others are not: any may go first.
            assert max(missed) < 1e-9
            assert own[lowest] < 1e-5
        else:
            assert lowest == int(np.argmin(missed))
            assert own[lowest] == pytest.approx(missed[lowest], rel=1e-2)


def test_magnitude_is_the_product_of_the_norms_of_what_makes_and_what_reads() -> None:
    tiny = front_end("wavlm")
    model = built(tiny).requires_grad_(False)
    scores = scored(model, tiny, clips_of(tiny, 1), Magnitude(method="magnitude"))
    layers = model.base_model.feature_extractor.conv_layers
    projection = model.base_model.feature_projection.projection.weight
    assert scores[Unit(0, 4, FRONT_END, "channel")] == pytest.approx(
        float(layers[0].conv.weight[4].norm() * layers[1].conv.weight[:, 4].norm())
    )
    assert scores[Unit(2, 15, FRONT_END, "channel")] == pytest.approx(
        float(layers[2].conv.weight[15].norm() * projection[:, 15].norm())
    )
    drawn = scored(model, tiny, clips_of(tiny, 1), Random(method="random"))
    assert len(set(drawn.values())) == len(drawn)


def test_slopes_are_those_of_the_loss_as_channels_are_turned_down() -> None:
    tiny = front_end("wav2vec2")
    model = built(tiny).double().requires_grad_(False)
    inputs = {name: value.double() for name, value in tiny.inputs(batch=1).items()}

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        return model(**batch.inputs).logits.square().sum(-1)

    calibration = read_unmodified(model, [Sample("a", inputs, 0)], attention=False)
    slopes, _ = channel_gradients(model, calibration, loss)
    units = channels_of(model)
    assert slopes.shape == (1, len(units))
    for place in (2, 15, 40):
        unit, step = units[place], 1e-5
        module = model.base_model.feature_extractor.conv_layers[unit.layer]
        found = []
        for change in (-step, step):
            factors = torch.ones(module.conv.out_channels, 1, dtype=torch.float64)
            factors[unit.index] += change
            handle = module.register_forward_hook(lambda _m, _i, out, f=factors: out * f)
            with torch.no_grad():
                found.append(float(loss(model, calibration.batch)))
            handle.remove()
        slope = (found[1] - found[0]) / (2 * step)
        assert float(slopes[0, place]) == pytest.approx(slope, rel=1e-4, abs=1e-9)


def test_every_so_many_windows_are_looked_at_each_clip_from_another() -> None:
    windows = torch.arange(3 * 11 * 2 * 2, dtype=torch.float64).reshape(3, 11, 2, 2).sin()
    targets = windows.flatten(2)[..., :3].cos()
    batch = ClipBatch(0, (4, 5, 9), 0, torch.ones(3, 11, dtype=torch.bool))
    found = window_moments(windows, targets, batch, 4, torch.tensor([True, True, False]))
    z = torch.cat([windows[0, 0::4], windows[1, 1::4]]).flatten(1)
    u = torch.cat([targets[0, 0::4], targets[1, 1::4]])
    wanted = Moments.of(z, u)
    assert found.weight == wanted.weight == 6
    assert torch.allclose(found.inputs, wanted.inputs)
    assert torch.allclose(found.cross, wanted.cross)
    none = window_moments(windows, targets, batch, 4, torch.zeros(3, dtype=torch.bool))
    assert none.weight == 0


def test_windows_are_as_many_as_columns_want_and_no_fewer_than_some() -> None:
    def step(frames: int, units: int, kernel: int) -> int:
        own = tuple(channels({0: tuple(range(units))}))
        writer = nn.Conv1d(units, 2, kernel)
        return window_step(frames, FrontEndPart(1, nn.Identity(), writer, None, own, ()))

    # wav2vec2-base, 200 clips of a second: the second layer makes 1599 frames of each.
    assert step(200 * 1599, 512, 3) == 319_800 // (32 * 1536)
    assert step(49_999, 4, 3) == step(99_999, 4, 3) == 1
    assert step(150_000, 4, 3) == 3


def test_some_windows_give_nearly_what_all_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = front_end("wav2vec2")
    model, clips = built(tiny), clips_of(tiny, 60)
    whole, part = (copy_without(model, channels(GONE)) for _ in range(2))
    wanted = repaired(model, whole, clips, tmp_path).sublayers[0]
    monkeypatch.setattr(front_end_passes, "LEAST_WINDOWS", 10)
    found = repaired(model, part, clips, tmp_path).sublayers[0]
    assert wanted.after < found.after < 1.5 * wanted.after < wanted.before
    again = copy_without(model, channels(GONE))
    repaired(model, again, clips, tmp_path)
    for one, other in zip(part.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_clips_one_by_one_in_files_and_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wav2vec2-stable", "conformer-rotary"):
        tiny = front_end(name)
        model, clips = built(tiny), clips_of(tiny, 30)
        together, alone, filed = (copy_without(model, channels(GONE)) for _ in range(3))
        repaired(model, together, clips, tmp_path)
        wanted = hidden(together, clips)
        repaired(model, filed, clips, tmp_path, room=0)
        assert torch.equal(hidden(filed, clips), wanted)
        with monkeypatch.context() as patch:
            patch.setattr(layerwise, "CLIPS_AT_ONCE", 1)
            patch.setattr(front_end_passes, "WINDOWS_AT_ONCE", 7)
            repaired(model, alone, clips, tmp_path)
        assert torch.allclose(hidden(alone, clips), wanted, atol=1e-3)


def test_files_do_not_pile_up(tmp_path: Path) -> None:
    tiny = front_end("wav2vec2")
    model, clips = built(tiny), clips_of(tiny, 30)
    seen: list[tuple[int, int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total, len(list(tmp_path.iterdir()))))

    smaller = copy_without(model, channels(GONE))
    repaired(model, smaller, clips, tmp_path, room=0, progress=progress)
    assert [one[:2] for one in seen] == [(n, 6) for n in range(1, 7)]
    assert seen[1][2] == seen[2][2] == seen[3][2]


def test_a_later_layer_alone(tmp_path: Path) -> None:
    """What lies below is left as it is, and not fitted."""
    tiny = front_end("unispeech")
    model, clips = built(tiny), clips_of(tiny, 30)
    for layer, left in ((1, 2), (2, 1)):
        smaller = copy_without(model, channels({layer: GONE[layer]}))
        before = {name: weight.clone() for name, weight in smaller.state_dict().items()}
        found = repaired(model, smaller, clips, tmp_path)
        own = [one for one in found.sublayers if one.kind == "channel"]
        assert [one.layer for one in own] == [2, 3][-left:]
        for name, weight in smaller.state_dict().items():
            if any(f"conv_layers.{number}." in name for number in range(layer + 1)):
                assert torch.equal(weight, before[name]), name
        assert own[0].refitted


def test_of_a_model_that_was_pruned_before(tmp_path: Path) -> None:
    tiny = front_end("hubert")
    model, clips = built(tiny), clips_of(tiny, 40)
    once = copy_without(model, channels({0: (0, 3), 1: (1,)}))
    twice = copy_without(once, channels(GONE))
    found = repaired(once, twice, clips, tmp_path)
    assert [(one.removed, one.kept) for one in found.sublayers[:3]] == [(2, 8), (2, 17), (1, 15)]
    assert all(one.refitted and one.after < one.before for one in found.sublayers[:3])


def test_factors_and_biases(tmp_path: Path) -> None:
    tiny = front_end("wav2vec2-bias")
    model, clips = built(tiny), clips_of(tiny, 40)
    errors: dict[str, float] = {}
    for kind in ("mean", "scale", "least-squares"):
        smaller = copy_without(model, channels(GONE))
        before = [part.writer.weight.detach().clone() for part in front_end_parts(smaller)]
        found = repaired(model, smaller, clips, tmp_path, kind)
        errors[kind] = sum(one.after for one in found.sublayers[:3])
        for part, weight in list(zip(front_end_parts(smaller), before, strict=True))[1:]:
            if kind == "mean":
                assert torch.equal(part.writer.weight, weight)
            if kind == "scale":
                factors = (part.writer.weight / weight).flatten(1).unflatten(1, (-1, part.size))
                assert factors.std((0, 2)).max() < 1e-3
    assert errors["least-squares"] < errors["scale"] < errors["mean"]
    bare = built(front_end("wav2vec2"))
    smaller = copy_without(bare, channels(GONE))
    found = repaired(bare, smaller, clips, tmp_path, "mean")
    # Convolutions without a bias have nothing that could move.
    assert [one.refitted for one in found.sublayers[:3]] == [False, False, True]


def test_gradient_steps_follow_on_the_encoders_layers(tmp_path: Path) -> None:
    tiny = front_end("wavlm")
    model, clips = built(tiny), clips_of(tiny, 30)
    smaller = copy_without(model, channels(GONE))
    found = repaired(model, smaller, clips, tmp_path, refine_steps=5)
    assert [one.layer for one in found.refinements] == [0, 1]
    assert [one.kind for one in found.sublayers[:3]] == ["channel"] * 3


def test_processes_that_share_the_clips_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = front_end("wav2vec2")
    monkeypatch.setattr(layerwise, "CLIPS_AT_ONCE", 3)
    monkeypatch.setattr(front_end_passes, "LEAST_WINDOWS", 300)
    model, clips = built(tiny), clips_of(tiny, 20)
    alone = copy_without(model, channels(GONE))
    wanted = repaired(model, alone, clips, tmp_path / "alone")
    barrier = threading.Barrier(2)
    parts: dict[int, Tensor] = {}
    models = [copy_without(model, channels(GONE)) for _ in range(2)]
    originals = [copy.deepcopy(model) for _ in range(2)]
    reports: dict[int, Repair] = {}

    def work(number: int) -> None:
        processes = InThread(number, 2, parts, barrier)
        place = tmp_path / str(number)
        reports[number] = repaired(
            originals[number], models[number], clips, place, processes=processes
        )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(reports[0].sublayers[:3], wanted.sublayers[:3], strict=True):
        assert one.strength == other.strength
        assert one.after == pytest.approx(other.after, rel=1e-4)


def test_too_few_windows_is_a_plain_line_and_nothing_changes(tmp_path: Path) -> None:
    tiny = replace(front_end("wav2vec2"), settings={"conv_dim": (200, 20, 16)})
    model, clips = built(tiny), clips_of(tiny, 2)
    smaller = copy_without(model, channels(GONE))
    before = {name: weight.clone() for name, weight in smaller.state_dict().items()}
    with pytest.raises(UserError) as caught:
        repaired(model, smaller, clips, tmp_path)
    assert str(caught.value).startswith(
        "removal.repair: 200 frames of calibration data are too few to fit the 588 unknowns of "
        "layer 1's convolution: give it about "
    )
    assert "\n" not in str(caught.value)
    assert all(torch.equal(weight, smaller.state_dict()[name]) for name, weight in before.items())


def test_numbers_that_are_not_finite_are_a_plain_line(tmp_path: Path) -> None:
    tiny = front_end("wav2vec2")
    model, clips = built(tiny), clips_of(tiny, 20)
    smaller = copy_without(model, channels(GONE))
    clips[3].inputs["input_values"][0, 100] = torch.nan  # type: ignore[index]
    with pytest.raises(UserError, match="layer 1's convolution gives out NaN or infinite values"):
        repaired(model, smaller, clips, tmp_path)
