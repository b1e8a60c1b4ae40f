"""Heads that leave their mean output behind: the same model until they go, and then that mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from standin import StandIn
from test_attention import MOVED, SAME, distance, every_masked_model, every_plan, logits
from test_resume import STEPS, run, step_result
from tiny_models import TINY_MODELS, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.cli import main
from hibprune.compression.means import mean_outputs, means_fault, move_means
from hibprune.models.attention import attention_sites, positions_fitted

BIASED = [tiny for tiny in TINY_MODELS if not tiny.name.startswith("moonshine")]
every_biased_model = pytest.mark.parametrize("tiny", BIASED, ids=lambda tiny: tiny.name)

Inputs = dict[str, Tensor]


def clips(tiny: TinyModel) -> list[Inputs]:
    """Two clips that differ, and where they may, in length as well."""
    first = tiny.inputs()
    second = {**first, tiny.main_input: first[tiny.main_input].flip(-1)}
    if tiny.takes in ("waveform", "tokens"):
        second = {
            tiny.main_input: first[tiny.main_input][:, : first[tiny.main_input].shape[1] // 2]
        }
    return [first, second]


def caught_means(model: PreTrainedModel, inputs: list[Inputs]) -> dict[int, np.ndarray]:
    """What goes into each output projection, frame by frame, averaged by numpy."""
    rows: dict[int, list[np.ndarray]] = {}
    for site in attention_sites(model):

        def keep(_module: nn.Module, given: tuple[Tensor, ...], layer: int = site.layer) -> None:
            rows.setdefault(layer, []).append(given[0].detach().double().flatten(0, 1).numpy())

        site.output.register_forward_pre_hook(keep)
    for clip in inputs:
        with positions_fitted(model, clip):
            model.get_encoder()(
                **{k: v for k, v in clip.items() if not k.startswith("decoder_")}
            ) if model.config.is_encoder_decoder else logits(model, clip)
    for site in attention_sites(model):
        site.output._forward_pre_hooks.clear()
    return {layer: np.concatenate(parts).mean(0) for layer, parts in rows.items()}


@every_biased_model
def test_nothing_changes_until_heads_go(tiny: TinyModel) -> None:
    model, inputs = tiny.build(), clips(tiny)
    wanted = [logits(model, inputs[0]), *([logits(model, inputs[1])] if not tiny.speaks else [])]
    expected = caught_means(model, inputs)

    means = mean_outputs(model, inputs)
    for layer, mean in means.items():
        np.testing.assert_allclose(mean.flatten().numpy(), expected[layer], atol=1e-5)
    move_means(model, means)
    assert means_fault(model) is None
    for clip, whole in zip(inputs, wanted, strict=False):
        assert distance(logits(model, clip), whole) < SAME
    for layer, mean in mean_outputs(model, inputs).items():
        assert float(mean.abs().max()) < 1e-5, layer


@every_masked_model
def test_nothing_changes_under_a_mask(tiny: TinyModel) -> None:
    """Since weights sum to 1 whatever they are kept from."""
    model, batch = tiny.build(), tiny.padded_inputs()
    wanted = logits(model, batch)
    move_means(model, mean_outputs(model, clips(tiny)))
    assert distance(logits(model, batch), wanted) < SAME


@every_plan
@every_biased_model
def test_removed_heads_give_out_their_mean_for_ever(
    tiny: TinyModel, plan: dict[int, list[int]]
) -> None:
    """As if the mean stood in their place in front of the output projection."""
    model, inputs = tiny.build(), clips(tiny)
    means = caught_means(model, inputs)
    smaller = tiny.build()
    move_means(smaller, mean_outputs(smaller, inputs))
    smaller.prune_heads(plan)
    bare = tiny.build()
    bare.prune_heads(plan)

    for site in attention_sites(model):

        def stand_in(
            _module: nn.Module,
            given: tuple[Tensor, ...],
            layer: int = site.layer,
            size: int = site.head_size,
        ) -> tuple[Tensor, ...]:
            outputs = given[0].clone()
            for head in plan.get(layer, ()):
                columns = slice(head * size, (head + 1) * size)
                outputs[..., columns] = torch.tensor(means[layer][columns], dtype=outputs.dtype)
            return (outputs, *given[1:])

        site.output.register_forward_pre_hook(stand_in)
    wanted = logits(model, inputs[0])
    assert distance(logits(smaller, inputs[0]), wanted) < SAME
    if plan:
        assert distance(logits(bare, inputs[0]), wanted) > MOVED


def test_a_model_without_biases_cannot(stand_in_of: Callable[[str], StandIn]) -> None:
    moonshine = stand_in_of("encoder_decoder_on_waveforms")
    arguments = ["check", str(moonshine.recipe), "--set", "removal.leave=mean"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: removal.leave: model type 'moonshine' has no bias in its attention to keep a mean "
        "in: leave it out"
    ]


def test_the_setting_redoes_all_and_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run(stand_in.recipe, output) == list(STEPS)
    bare = load_file(output / "model.safetensors")
    baseline = step_result(output, "baseline")["value"]
    assert run(stand_in.recipe, output, "--set", "removal.leave=mean") == list(STEPS)
    biased = load_file(output / "model.safetensors")
    assert step_result(output, "baseline")["value"] == pytest.approx(baseline)
    moved = {key for key in bare if not torch.equal(bare[key], biased[key])}
    assert moved
    assert all(key.endswith(("v_proj.bias", "out_proj.bias")) for key in moved)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["heads"]["left"] == "mean"
    assert "Their mean output stays, in biases." in (output / "report.md").read_text()
    assert run(stand_in.recipe, output, "--set", "removal.leave=mean") == []
