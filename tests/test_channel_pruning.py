"""Channels of every family's front end: what is left is the smaller model, and stays so."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import interpreters
import pytest
import torch
import transformers
from front_ends import FRONT_ENDS, GROUP_NORM, WIDTHS, built, front_end
from test_export import named_logits
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.compression.channel_pruning import remove_channels
from hibprune.compression.neuron_pruning import remove_neurons
from hibprune.compression.remove import remove_units
from hibprune.deployment.export import export_onnx
from hibprune.deployment.parity import check_parity
from hibprune.deployment.settings import ExportSettings
from hibprune.errors import UserError
from hibprune.execution.runtime import onnx_predict, onnx_session, torch_predict
from hibprune.models.front_end import channels_of, front_end_parts, require_front_end
from hibprune.records.medium import SOUND, Length
from hibprune.records.units import FRONT_END, Unit

every_front_end = pytest.mark.parametrize("tiny", FRONT_ENDS, ids=lambda tiny: tiny.name)
GONE = {0: (0, 3, 4, 11), 1: (1, 2, 19), 2: (5,)}


def channels(gone: dict[int, tuple[int, ...]]) -> list[Unit]:
    return [Unit(n, i, FRONT_END, "channel") for n, indices in gone.items() for i in indices]


def logits(model: PreTrainedModel, tiny: TinyModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs()).logits


def by_hand(tiny: TinyModel, model: PreTrainedModel) -> PreTrainedModel:
    """The smaller model that transformers builds, with weights picked out of the whole one's."""
    kept = [
        [i for i in range(width) if i not in GONE.get(layer, ())]
        for layer, width in enumerate(WIDTHS)
    ]
    auto = getattr(transformers, tiny.auto_class)
    smaller = auto.from_config(tiny.config(conv_dim=[len(own) for own in kept])).eval()
    weights = {}
    for name, weight in model.state_dict().items():
        _, _, path = name.partition(".")
        rows, columns = None, None
        if path.startswith("feature_extractor."):
            layer = int(path.split(".")[2])
            rows = kept[layer]
            columns = kept[layer - 1] if layer and weight.dim() == 3 else None
        elif path.startswith("feature_projection.layer_norm"):
            rows = kept[-1]
        elif path == "feature_projection.projection.weight":
            columns = kept[-1]
        weight = weight if rows is None else weight[rows]
        weights[name] = weight if columns is None else weight[:, columns]
    smaller.load_state_dict(weights)
    return smaller


@every_front_end
def test_what_is_left_is_the_smaller_model_built_by_hand(tiny: TinyModel) -> None:
    model = built(tiny)
    assert len(channels_of(model)) == sum(WIDTHS)
    whole, wanted = logits(model, tiny), logits(by_hand(tiny, model), tiny)
    assert (wanted - whole).abs().max() > 1e-3
    remove_channels(model, channels(GONE))
    assert torch.equal(logits(model, tiny), wanted)
    assert list(model.config.conv_dim) == [8, 17, 15]
    assert set(channels_of(model)).isdisjoint(channels(GONE))
    assert model.training is False
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("tiny", GROUP_NORM, ids=lambda tiny: tiny.name)
def test_zeroed_equals_removed_where_no_norm_is_over_channels(tiny: TinyModel) -> None:
    """Behind the last layer is one, except in one of the variants."""
    model = built(tiny)
    last = {} if getattr(model.config, "feat_proj_layer_norm", True) else {2: GONE[2]}
    gone = {0: GONE[0], 1: GONE[1], **last}

    def zeroing(places: tuple[int, ...]) -> object:
        return lambda _m, _i, output: output.index_fill(1, torch.tensor(places), 0)

    handles = [
        model.base_model.feature_extractor.conv_layers[layer].register_forward_hook(zeroing(own))
        for layer, own in gone.items()
    ]
    wanted = logits(model, tiny)
    for handle in handles:
        handle.remove()
    remove_channels(model, channels(gone))
    assert torch.allclose(logits(model, tiny), wanted, atol=1e-5)


@every_front_end
def test_reloads_exactly_and_is_pruned_again_by_original_places(
    tiny: TinyModel, tmp_path: Path
) -> None:
    wanted = built(tiny)
    remove_channels(wanted, channels(GONE))
    model = built(tiny)
    first = {0: (3, 11), 1: (2,)}
    remove_channels(model, channels(first))
    model.save_pretrained(tmp_path / "once")
    once = type(model).from_pretrained(tmp_path / "once")
    assert torch.equal(logits(once, tiny), logits(model, tiny))
    assert channels_of(once) == channels_of(model)
    remove_channels(once, channels(GONE))  # those gone are passed over
    assert torch.equal(logits(once, tiny), logits(wanted, tiny))
    once.save_pretrained(tmp_path / "twice")
    twice = type(model).from_pretrained(tmp_path / "twice")
    assert torch.equal(logits(twice, tiny), logits(wanted, tiny))
    assert channels_of(twice) == channels_of(wanted)


LOAD = """
import sys, torch
from transformers import AutoModel

def load(directories):
    for directory in directories:
        model = AutoModel.from_pretrained(directory).eval()
        expected = torch.load(f"{directory}/expected.pt")
        with torch.no_grad():
            print((model(**expected["inputs"])[0] - expected["output"]).abs().max().item())

split = sys.argv.index("--")
load(sys.argv[1:split])
assert "hibprune" not in sys.modules
import hibprune
load(sys.argv[split + 1:])
"""


def saved(model: PreTrainedModel, tiny: TinyModel, directory: Path) -> str:
    model.save_pretrained(directory)
    with torch.no_grad():
        output = model.base_model(**tiny.inputs())[0]
    torch.save({"inputs": tiny.inputs(), "output": output}, directory / "expected.pt")
    return str(directory)


def test_transformers_alone_loads_a_model_that_only_lost_channels(tmp_path: Path) -> None:
    """And hibprune one that lost units of all kinds, in a fresh process."""
    places, all_kinds = [], []
    for tiny in {tiny.configuration: tiny for tiny in FRONT_ENDS}.values():
        model = built(tiny)
        remove_channels(model, channels(GONE))
        places.append(saved(model, tiny, tmp_path / tiny.name))
        if tiny.name in ("wavlm-stable", "conformer-rotary"):
            remove_units(model, [Unit(0, 0), Unit(1, 2), Unit(0, 5, kind="neuron")])
            all_kinds.append(saved(model, tiny, tmp_path / f"{tiny.name}-all"))
    told = interpreters.run(LOAD, *places, "--", *all_kinds, ready="transformers")
    assert told.stdout.split() == ["0.0"] * (7 + 2), told.stderr


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm-stable", "conformer-relative"])
def test_with_heads_and_neurons_in_any_order(name: str, tmp_path: Path) -> None:
    tiny = front_end(name)
    kinds = (
        [Unit(0, 0), Unit(0, 2), Unit(1, 3)],
        [Unit(0, index, kind="neuron") for index in (0, 7, 36)],
        channels(GONE),
    )
    outputs = []
    for order in permutations(kinds):
        model = built(tiny)
        for units in order:
            remove_units(model, units)
        model.save_pretrained(tmp_path)
        outputs.append(logits(type(model).from_pretrained(tmp_path), tiny))
        assert torch.equal(outputs[-1], logits(model, tiny))
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_a_kind_of_unit_that_nobody_removes_fails_before_anything_goes() -> None:
    tiny = front_end("wav2vec2")
    model = built(tiny)
    before = logits(model, tiny)
    frame: Any = "frame"
    with pytest.raises(AssertionError, match="'frame'"):
        remove_units(model, [Unit(0, 0), *channels(GONE), Unit(0, 1, kind=frame)])
    assert torch.equal(logits(model, tiny), before)
    assert "_hibprune" not in model.config.to_dict()


@pytest.mark.parametrize("name", ["wav2vec2", "wavlm-stable", "data2vec-audio", "hubert-bare"])
def test_the_graph_agrees_with_pytorch(name: str, tmp_path: Path) -> None:
    tiny = front_end(name)
    model = built(tiny)
    remove_units(model, [Unit(0, 1), Unit(1, 4, kind="neuron"), *channels(GONE)])
    export_onnx(model, tmp_path, "audio-classification", 18, ("model.onnx",))

    def example(length: Length, batch: int) -> dict[str, Tensor]:
        return tiny.inputs(batch, length.value)

    settings = ExportSettings(tolerance=1e-5, seconds=(0.2, 0.37), batches=(1, 2))
    exported = onnx_predict(onnx_session(tmp_path / "model.onnx", "cpu", threads=1))
    torchs, graphs = (named_logits(one) for one in (torch_predict(model), exported))
    assert len(check_parity(torchs, graphs, example, settings, SOUND).cases) == 4


@pytest.mark.parametrize(
    "channel", [Unit(3, 0, FRONT_END, "channel"), Unit(0, WIDTHS[0], FRONT_END, "channel")]
)
def test_a_channel_that_never_was_is_an_error(channel: Unit) -> None:
    with pytest.raises(IndexError, match="front end has"):
        remove_channels(built(front_end("wav2vec2")), [channel])


def test_a_layer_keeps_a_channel_also_when_pruned_twice() -> None:
    model = built(front_end("wav2vec2"))
    before = model.state_dict()
    with pytest.raises(ValueError, match="layer 0 of the front end has to keep a channel"):
        remove_channels(model, channels({0: tuple(range(12)), 1: (0,)}))
    assert model.state_dict().keys() == before.keys()
    assert list(model.config.conv_dim) == list(WIDTHS)
    remove_channels(model, channels({0: tuple(range(11))}))
    assert logits(model, front_end("wav2vec2")).isfinite().all()
    with pytest.raises(ValueError, match="has to keep a channel"):
        remove_channels(model, channels({0: (11,)}))


def test_removing_nothing_leaves_the_configuration_alone() -> None:
    model = built(front_end("wav2vec2"))
    before = model.config.to_dict()
    remove_channels(model, [])
    assert model.config.to_dict() == before


@pytest.mark.parametrize("told", [{"0": (12, "3")}, {"0": (12, "1000")}, {"0": (12, "-1")}])
def test_a_configuration_that_contradicts_itself_is_an_error(
    told: dict[str, tuple[int, str]],
) -> None:
    config = front_end("wav2vec2").config(pruned_channels=told)
    with pytest.raises(ValueError, match=r"where the configuration gives 12|never were"):
        transformers.AutoModel.from_config(config)


def test_types_and_what_follows_a_convolution_are_kept() -> None:
    model = built(front_end("wav2vec2")).half()
    model.base_model.feature_extractor._freeze_parameters()
    remove_channels(model, channels(GONE))
    remove_neurons(model, [Unit(0, 0, kind="neuron")])
    for part in front_end_parts(model):
        for weight in part.module.parameters():
            assert weight.dtype == torch.float16
            assert weight.requires_grad == part.is_projection
    first = front_end_parts(model)[0].norm
    assert isinstance(first, nn.GroupNorm)
    assert (first.num_groups, first.num_channels) == (8, 8)


def test_families_without_a_front_end_are_told_in_a_line() -> None:
    there = {"WhisperConfig", *(tiny.configuration for tiny in FRONT_ENDS)}
    for tiny in TINY_MODELS:
        if tiny.configuration not in there:
            model = tiny.build()
            assert channels_of(model) == ()
            with pytest.raises(UserError, match=r"^budget\.channels: model type '.*' has no conv"):
                require_front_end(model)
