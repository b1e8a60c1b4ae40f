"""Channels between Whisper's two convolutions: the configuration has no number for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from commands import manifest, run
from standin import encoder_decoder
from test_repair import clips_of, hidden, repaired
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.attribution.batches import read_unmodified
from hibprune.attribution.sensitivity import channel_gradients
from hibprune.attribution.session import Sample
from hibprune.compression.channel_pruning import remove_channels
from hibprune.compression.neuron_pruning import remove_neurons
from hibprune.compression.remove import copy_without
from hibprune.models.front_end import channels_of, front_end_parts
from hibprune.records.units import FRONT_END, Unit
from hibprune.tasks import Batch

GONE = (0, 3, 7)


@pytest.fixture
def tiny() -> TinyModel:
    return next(one for one in TINY_MODELS if one.name == "whisper")


def channels(*places: int) -> list[Unit]:
    return [Unit(0, place, FRONT_END, "channel") for place in places]


def logits(model: PreTrainedModel, tiny: TinyModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs()).logits


def silent(model: PreTrainedModel, tiny: TinyModel, *places: int) -> Tensor:
    """What the model says with some of what GELU gives the second convolution put to 0."""

    def zeroing(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].index_fill(1, torch.tensor(places), 0),)

    handle = model.base_model.encoder.conv2.register_forward_pre_hook(zeroing)
    found = logits(model, tiny)
    handle.remove()
    return found


def test_zeroed_equals_removed_reloaded_and_removed_again(tiny: TinyModel, tmp_path: Path) -> None:
    model = tiny.build()
    width = model.config.d_model
    assert channels_of(model) == tuple(channels(*range(width)))
    whole, wanted = logits(model, tiny), silent(model, tiny, *GONE)
    assert (whole - wanted).abs().max() > 1e-4
    remove_channels(model, channels(*GONE[:2]))
    model.save_pretrained(tmp_path / "once")
    once = type(model).from_pretrained(tmp_path / "once")
    assert torch.equal(logits(once, tiny), logits(model, tiny))
    remove_channels(once, channels(*GONE))  # those gone are passed over
    remove_neurons(once, [Unit(0, 1, kind="neuron")])
    assert channels_of(once) == tuple(
        one for one in channels(*range(width)) if one.index not in GONE
    )
    remove_neurons(model, [Unit(0, 1, kind="neuron")])
    remove_channels(model, channels(GONE[2]))
    assert torch.equal(logits(once, tiny), logits(model, tiny))
    once.save_pretrained(tmp_path / "twice")
    twice = type(model).from_pretrained(tmp_path / "twice")
    assert torch.equal(logits(twice, tiny), logits(once, tiny))
    assert twice.base_model.encoder.conv1.weight.shape[0] == width - 3
    alone = tiny.build()
    remove_channels(alone, channels(*GONE))
    assert torch.allclose(logits(alone, tiny), wanted, atol=1e-5)


def test_a_classifier_has_them_too_and_the_last_convolutions_stay(tiny: TinyModel) -> None:
    config = tiny.config()
    model = transformers.WhisperForAudioClassification(config).eval()
    assert len(channels_of(model)) == config.d_model
    remove_channels(model, channels(*GONE))
    again = transformers.WhisperForAudioClassification(model.config)
    assert again.encoder.conv1.out_channels == config.d_model - 3
    with pytest.raises(IndexError, match="layers 0 to 0, not 1"):
        remove_channels(model, [Unit(1, 0, FRONT_END, "channel")])


@pytest.mark.parametrize(
    "told", [{"0": (12, "3")}, {"1": (16, "1")}, {"0": (16, "10000000000")}, {"0": (16, "ffff")}]
)
def test_a_configuration_that_contradicts_itself_is_an_error(
    tiny: TinyModel, told: dict[str, tuple[int, str]]
) -> None:
    width = tiny.config().d_model
    told = {layer: (width if count == 16 else count, mask) for layer, (count, mask) in told.items()}
    if told.get("0", (0, ""))[1] == "ffff":
        told["0"] = (width, f"{2**width - 1:x}")
    elif "0" in told and told["0"][0] == width:
        told["0"] = (width, f"{2 ** (width + 1):x}")
    with pytest.raises(ValueError, match=r"pruned_channels speaks of"):
        transformers.AutoModel.from_config(tiny.config(pruned_channels=told))


def test_windows_are_of_the_padded_input(tiny: TinyModel) -> None:
    model = tiny.build()
    for part in front_end_parts(model):
        writer = part.writer
        inputs = torch.randn(2, writer.in_channels, 24)
        windows = part.windows(inputs)
        assert windows.shape[1] == part.frames(24)
        rows = windows.flatten(2) @ writer.weight.flatten(1).T + writer.bias
        assert torch.allclose(rows.transpose(1, 2), writer(inputs), atol=1e-5)


def test_the_fit_is_numpys_ridge_about_the_old_weights(tiny: TinyModel, tmp_path: Path) -> None:
    model, clips = tiny.build(), clips_of(tiny, 40)
    smaller = copy_without(model, channels(*GONE))
    width = model.config.d_model
    old = smaller.base_model.encoder.conv2.weight.detach().flatten(1).double().numpy()
    before = (hidden(smaller, clips) - hidden(model, clips)).square().mean()
    found = repaired(model, smaller, clips, tmp_path)
    (report,) = (one for one in found.sublayers if one.kind == "channel")
    assert (report.removed, report.kept, report.refitted) == (3, width - 3, True)

    def heard(one: PreTrainedModel) -> tuple[np.ndarray, np.ndarray]:
        """Padded windows of what the second convolution is given, and what it gives out."""
        rows: list[tuple[np.ndarray, np.ndarray]] = []

        def keep(_m: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            z = np.pad(inputs[0][0].double().numpy(), ((0, 0), (1, 1)))
            slid = np.lib.stride_tricks.sliding_window_view(z, 3, axis=1)[:, ::2]
            columns = slid.transpose(1, 0, 2).reshape(slid.shape[1], -1)
            rows.append((columns, output[0].double().numpy().T))

        handle = one.base_model.encoder.conv2.register_forward_hook(keep)
        with torch.no_grad():
            for clip in clips:
                one.get_encoder()(**clip.inputs)
        handle.remove()
        return np.concatenate([row[0] for row in rows]), np.concatenate([row[1] for row in rows])

    z, u = heard(smaller)[0], heard(model)[1]
    assert report.strength is not None
    mean, target = z.mean(0), u.mean(0)
    strength = report.strength * ((z - mean) ** 2).sum() / z.shape[1]
    design = np.vstack([z - mean, np.sqrt(strength) * np.eye(z.shape[1])])
    right = np.vstack([u - target, np.sqrt(strength) * old.T])
    expected = np.linalg.lstsq(design, right, rcond=None)[0].T
    writer = smaller.base_model.encoder.conv2
    np.testing.assert_allclose(
        writer.weight.detach().flatten(1).double().numpy(), expected, atol=2e-4 * np.abs(old).max()
    )
    np.testing.assert_allclose(
        writer.bias.detach().double().numpy(), target - expected @ mean, atol=1e-4
    )
    after = (hidden(smaller, clips) - hidden(model, clips)).square().mean()
    assert after < before


def test_slopes_are_those_of_the_loss_as_channels_are_turned_down(tiny: TinyModel) -> None:
    model = tiny.build().double().requires_grad_(False)
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in tiny.inputs(batch=1).items()
    }

    def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        return model(**batch.inputs).logits.square().mean((1, 2))

    calibration = read_unmodified(model, [Sample("a", inputs, 0)], attention=False)
    slopes, _ = channel_gradients(model, calibration, loss)
    assert slopes.shape == (1, model.config.d_model)
    for place in (0, 5, 11):
        found = []
        for change in (-1e-5, 1e-5):

            def turned(
                _m: nn.Module, given: tuple[Tensor, ...], change: float = change, at: int = place
            ) -> tuple[Tensor, ...]:
                factors = torch.ones(given[0].shape[1], 1, dtype=torch.float64)
                factors[at] += change
                return (given[0] * factors,)

            handle = model.base_model.encoder.conv2.register_forward_pre_hook(turned)
            with torch.no_grad():
                found.append(float(loss(model, calibration.batch)))
            handle.remove()
        assert float(slopes[0, place]) == pytest.approx((found[1] - found[0]) / 2e-5, rel=1e-4)


def test_from_the_recipe_to_graphs_and_answers(tmp_path: Path) -> None:
    """Chosen by what a fit misses, removed, fitted, exported with parity, told of, loaded again."""
    stand_in = encoder_decoder(tmp_path / "own")
    result = run(stand_in, "--set", "budget.channels=0.5", "--set", "export.variants=[fp32]")
    assert result.exit_code == 0, result.output or result.exception
    found = manifest(stand_in).channels
    assert found is not None
    assert found.removed_count == found.total // 2
    out = stand_in.root / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["pruned_channels"].keys() == {"0"}
    loaded = transformers.WhisperForConditionalGeneration.from_pretrained(out)
    assert loaded.base_model.encoder.conv1.out_channels == found.total - found.removed_count
    assert loaded.base_model.encoder.conv2.out_channels == config["d_model"]
