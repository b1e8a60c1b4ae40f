"""Channels from the recipe to the report: chosen, removed, repaired, exported, told of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import faults, invoke, manifest, refused, run
from manifests import unwrapped
from pydantic import ValidationError
from standin import (
    StandIn,
    encoder_decoder_on_waveforms,
    quick_keyword_spotting,
    text_classification,
)

from hibprune.compression.plan import Budget, lowest_units
from hibprune.errors import UserError
from hibprune.records.units import FRONT_END, Plan, Scores, Unit, units_by_layer

OPTIONS = (
    "--set", "budget.channels=0.5", "--set", "budget.neurons=0.25",
    "--set", "schedule.rounds=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    stand_in = quick_keyword_spotting(tmp_path_factory.mktemp("channels") / "keywords")
    result = run(stand_in, *OPTIONS)
    assert result.exit_code == 0, result.output or result.exception
    (stand_in.root / "said.txt").write_text(result.stdout)
    return stand_in


def test_check_counts_what_would_go(pruned: StandIn) -> None:
    said = invoke("check", pruned.recipe, *OPTIONS)
    assert said.exit_code == 0
    assert "would remove 18 of 74 neurons of the feed-forwards (global)\n" in said.stdout
    assert "would remove 24 of 48 channels of the front end (layerwise)\n" in said.stdout
    told = json.loads(invoke("check", pruned.recipe, *OPTIONS, "--json").stdout)
    assert [line.partition(" (")[0] for line in told["removes"]] == [
        "3 of 8 heads of the encoder",
        "18 of 74 neurons of the feed-forwards",
        "24 of 48 channels of the front end",
    ]


def test_half_of_every_layer_is_gone_for_good(pruned: StandIn) -> None:
    out = pruned.root / "out"
    config = json.loads((out / "config.json").read_text())
    assert config["conv_dim"] == [8, 8, 8]
    found = manifest(pruned).channels
    assert found is not None
    assert (found.total, found.removed_count, found.share) == (48, 24, 0.5)
    assert (found.scope, found.method) == ("layerwise", "reconstruction")
    assert found.kept == {0: 8, 1: 8, 2: 8}
    for layer, gone in found.removed.items():
        mask = sum(1 << index for index in gone)
        assert config["pruned_channels"][str(layer)] == [16, f"{mask:x}"]
    graph = onnx.load(out / "onnx" / "model.onnx")
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(said["hibprune.removed_channels"]) == {"0": 8, "1": 8, "2": 8}
    (first,) = (
        node for node in graph.graph.node if node.op_type == "Conv" and "0/conv" in node.name
    )
    shapes = {one.name: tuple(one.dims) for one in graph.graph.initializer}
    assert shapes[first.input[1]] == (8, 1, 10)


def test_what_was_done_is_told_everywhere(pruned: StandIn) -> None:
    out = pruned.root / "out"
    sentence = "Of 48 channels of the front end 24 were removed (50 %)."
    for text in ("said.txt", "out/report.md", "out/README.md"):
        assert sentence in unwrapped((pruned.root / text).read_text())
    report = (out / "report.md").read_text()
    assert "## Channels" in report
    assert (
        "24 of 48 channels of the front end went, scored by reconstruction (layerwise)." in report
    )
    assert report.index("## Neurons") < report.index("## Channels") < report.index("## Repair")
    assert "| 3 | feature projection | 8 | 8 |" in unwrapped(report)
    found = manifest(pruned)
    assert found.variant("pruned").done[:3] == (
        "3 heads removed", "18 neurons removed", "24 channels removed",
    )  # fmt: skip
    assert {"attribute-channels", "plan-channels"} <= set(found.steps)
    assert found.repair is not None
    front = [one for one in found.repair.sublayers if one.kind == "channel"]
    assert [(one.layer, one.removed, one.kept) for one in front] == [(n, 8, 8) for n in (1, 2, 3)]
    assert all(one.after <= one.before for one in front)


def test_a_run_is_taken_up_and_another_share_removes_others(
    pruned: StandIn, tmp_path: Path
) -> None:
    again = run(pruned, *OPTIONS, "--quiet")
    assert again.exit_code == 0
    steps = {line.split()[0]: line.split()[1] for line in again.stdout.splitlines()[:14] if line}
    for step in ("attribute-channels", "plan-channels", "repair", "export"):
        assert steps[step] == "done"
    other = run(pruned, *OPTIONS, "--set", "budget.channels=0.25", "--quiet")
    assert other.exit_code == 0
    steps = {line.split()[0]: line.split()[1] for line in other.stdout.splitlines()[:14] if line}
    assert steps["attribute-channels"] == steps["plan-neurons"] == "done"
    assert "done" not in (steps["plan-channels"], steps["repair"])
    config = json.loads((pruned.root / "out" / "config.json").read_text())
    assert config["conv_dim"] == [12, 12, 12]


@pytest.mark.parametrize("make", [encoder_decoder_on_waveforms, text_classification])
def test_a_model_without_such_a_front_end_is_told_before_any_work(
    make: Any, tmp_path: Path
) -> None:
    stand_in = make(tmp_path / "own")
    (line,) = refused(stand_in, "--set", "budget.channels=0.5")
    kind = json.loads((stand_in.model / "config.json").read_text())["model_type"]
    assert line == (
        f"budget.channels: model type '{kind}' has no convolutional front end whose channels can "
        "be removed: leave it out (those of wav2vec2, hubert, wavlm, data2vec-audio, unispeech, "
        "unispeech-sat, wav2vec2-conformer, whisper can)"
    )
    content = stand_in.content()
    content["budget"]["channels"] = 0.5
    stand_in.write(content)
    assert faults(invoke("check", stand_in.recipe)) == [line]


@pytest.mark.parametrize("share", [1, 1.5, -0.1, "half"])
def test_a_share_is_at_least_0_and_below_1(share: Any) -> None:
    with pytest.raises(ValidationError, match="channels"):
        Budget.model_validate({"heads": 1, "channels": share})


def channel_scores(*layers: tuple[float, ...]) -> Scores:
    units = [
        Unit(n, i, FRONT_END, "channel")
        for n, layer in enumerate(layers)
        for i in range(len(layer))
    ]
    row = tuple(value for layer in layers for value in layer)
    return Scores(method="by hand", heads=tuple(units), samples=(), per_sample=(row,))


def test_the_lowest_of_every_layer_go_whatever_the_scope() -> None:
    scores = channel_scores((3.0, 1.0, 2.0, 1.0), (9.0, 8.0, 7.0), (0.0,))
    for scope in ("global", "layerwise"):
        budget = Budget.model_validate({"heads": 1, "channels": 0.5, "scope": scope})
        assert units_by_layer(lowest_units(scores, budget, "channel")) == {
            0: (1, 3),
            1: (2,),
        }
    # However large the share, a layer keeps one.
    most = Budget(heads=1, channels=0.999)
    assert units_by_layer(lowest_units(scores, most, "channel")) == {
        0: (1, 2, 3),
        1: (1, 2),
    }
    with pytest.raises(UserError, match="attribution of channels: a score is not finite"):
        lowest_units(channel_scores((1.0, float("nan"))), most, "channel")


def test_a_plan_holds_all_kinds_and_comes_back_from_json() -> None:
    plan = Plan(removed=(Unit(0, 1),), kept=(), neurons={0: (2,)}, channels={1: (3, 4)})
    assert plan.units == (
        Unit(0, 1),
        Unit(0, 2, kind="neuron"),
        Unit(1, 3, FRONT_END, "channel"),
        Unit(1, 4, FRONT_END, "channel"),
    )
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
