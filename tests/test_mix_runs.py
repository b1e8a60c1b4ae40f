"""One number for all kinds of units, from the recipe to the report, and at several budgets."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import faults, invoke, manifest, refused, run, words_of_steps
from manifests import unwrapped
from pydantic import ValidationError
from safetensors.torch import load_file
from standin import StandIn, lower_ranks, quick_keyword_spotting, text_classification

from hibprune.compression.plan import Budget
from hibprune.records.frontier import Frontier
from hibprune.records.manifest import Manifest

ASKED = 0.8


def prepared(root: Path) -> StandIn:
    return quick_keyword_spotting(root, {"parameters": ASKED})


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    stand_in = prepared(tmp_path_factory.mktemp("mix") / "keywords")
    result = run(stand_in)
    assert result.exit_code == 0, result.output or result.exception
    return stand_in


def stored(directory: Path) -> int:
    return sum(one.numel() for one in load_file(directory / "model.safetensors").values())


def test_the_share_of_the_parameters_that_was_asked_for_is_left(pruned: StandIn) -> None:
    found, asked = manifest(pruned), ASKED * stored(pruned.model)
    left = stored(pruned.root / "out")
    # No more than asked, and not so much less that the smallest unit, a neuron, would fit.
    assert asked - 65 < left <= asked
    assert found.budget is not None
    assert found.budget.reached == pytest.approx(left / stored(pruned.model))
    assert found.budget.kinds == ("head", "neuron", "channel", "rank")
    assert found.attribution.method == "reconstruction"


def test_the_report_shows_what_went_from_where(pruned: StandIn) -> None:
    report, found = (pruned.root / "out" / "report.md").read_text(), manifest(pruned)
    section = report.partition("## Mix")[2].partition("## Heads")[0]
    assert f"The budget leaves {ASKED:.0%}".replace("%", "") in section
    (total,) = re.findall(r"\| all \|(.*)\|", section)
    numbers = [int(one) for one in total.split("|")]
    assert found.neurons is not None
    assert found.channels is not None
    assert numbers[::2] == [
        found.heads.removed_count, found.neurons.removed_count, found.channels.removed_count,
    ]  # fmt: skip
    # Two layers of 4 heads and two feed-forwards, three convolutions of 16 channels.
    assert sum(numbers) == 8 + found.neurons.total + 48
    assert found.neurons.share is None


@pytest.fixture(scope="module")
def thinner(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A model whose projections are of rank 4, so that nothing else has to go."""
    stand_in = quick_keyword_spotting(
        tmp_path_factory.mktemp("thinner") / "keywords", {"parameters": 0.72}
    )
    lower_ranks(stand_in)
    result = run(stand_in)
    assert result.exit_code == 0, result.output or result.exception
    return stand_in


def test_ranks_are_taken_where_they_cost_nothing(thinner: StandIn) -> None:
    found, out = manifest(thinner), thinner.root / "out"
    assert found.budget is not None
    assert found.ranks is not None
    assert found.heads.removed_count == 0
    assert {pool: units.removed_count for pool, units in found.others.items()} == {
        "neuron": 0, "channel": 0,
    }  # fmt: skip
    assert found.budget.reached <= 0.72
    assert found.budget.reached == pytest.approx(stored(out) / stored(thinner.model))
    assert found.ranks.share is None
    assert {one.rank for one in found.ranks.factored} <= set(range(4, 16))
    assert all(one.error is not None and one.error < 1e-4 for one in found.ranks.factored)
    assert found.variant("pruned").metric == found.original.metric
    config = json.loads((out / "config.json").read_text())
    assert config["projection_ranks"] == {
        str(layer): {one.name: one.rank for one in found.ranks.factored if one.layer == layer}
        for layer in sorted({one.layer for one in found.ranks.factored})
    }


def test_the_report_shows_ranks_that_are_kept(thinner: StandIn) -> None:
    report, found = (thinner.root / "out" / "report.md").read_text(), manifest(thinner)
    section = report.partition("## Mix")[2].partition("## Heads")[0]
    assert "of heads, neurons, channels and ranks, was decided" in unwrapped(section)
    assert found.ranks is not None
    one = found.ranks.factored[0]
    assert f"{one.rank} of {min(one.rows, one.columns)}" in section
    assert one.name in section
    assert "or more were to go" not in report
    assert f"{len(found.ranks.factored)} projections factored" in found.variant("pruned").done


def test_a_run_with_ranks_is_taken_up_and_kinds_limit_it(thinner: StandIn, tmp_path: Path) -> None:
    again = run(thinner, "--quiet")
    assert again.exit_code == 0
    said = words_of_steps(again.stdout)
    assert said["plan"] == said["repair"] == "done"
    other_out = tmp_path / "other"
    shutil.copytree(thinner.root / "out", other_out)
    units = "budget={parameters: 0.72, kinds: [head, neuron]}"
    assert run(thinner, "--set", units, "--quiet", output=other_out).exit_code == 0
    found = Manifest.model_validate_json((other_out / "manifest.json").read_text())
    assert found.ranks is None
    assert found.heads.removed_count > 0
    alone = "budget={parameters: 0.72, kinds: [rank]}"
    assert run(thinner, "--set", alone, "--quiet", output=other_out).exit_code == 0
    found = Manifest.model_validate_json((other_out / "manifest.json").read_text())
    assert found.ranks is not None
    assert not found.others
    assert found.heads.removed_count == 0
    assert 0.7 < found.variant("pruned").parameters / found.original.parameters <= 0.72


def test_a_run_is_taken_up_and_another_budget_plans_anew(pruned: StandIn, tmp_path: Path) -> None:
    again = run(pruned, "--quiet")
    assert again.exit_code == 0
    assert words_of_steps(again.stdout)["plan"] == words_of_steps(again.stdout)["repair"] == "done"
    other_out = tmp_path / "other"
    shutil.copytree(pruned.root / "out", other_out)
    other = run(pruned, "--set", "budget={multiply_adds: 0.5}", "--quiet", output=other_out)
    assert other.exit_code == 0
    said = words_of_steps(other.stdout)
    assert said["attribute"] == said["attribute-neurons"] == said["attribute-channels"] == "done"
    assert "done" not in (said["plan"], said["repair"])
    found = Manifest.model_validate_json((other_out / "manifest.json").read_text())
    ratio = found.variant("pruned").macs / found.original.macs
    assert 0.49 < ratio <= 0.5


def test_kinds_limit_what_goes_and_one_alone_goes_by_its_own_scores(
    pruned: StandIn, tmp_path: Path
) -> None:
    result = run(
        pruned, "--set", "budget={parameters: 0.95, kinds: [head]}", output=tmp_path / "heads"
    )
    assert result.exit_code == 0
    found = Manifest.model_validate_json((tmp_path / "heads" / "manifest.json").read_text())
    assert found.attribution.method == "magnitude"
    assert found.heads.removed_count > 0
    assert found.neurons is None
    assert found.channels is None
    scores = json.loads((tmp_path / "heads" / "steps" / "attribute.json").read_text())["result"]
    row = scores["per_sample"][0]
    order = sorted(range(len(row)), key=lambda place: row[place])
    lowest = [scores["heads"][place] for place in order[: found.heads.removed_count]]
    gone = {layer: set(heads) for layer, heads in found.heads.removed.items()}
    assert all(one["index"] in gone[one["layer"]] for one in lowest)


def test_check_says_what_could_be_had(pruned: StandIn) -> None:
    said = invoke("check", pruned.recipe)
    assert said.exit_code == 0
    assert (
        "would remove heads, neurons, channels and ranks until 80.0% of the parameters"
        in said.stdout
    )


def test_what_cannot_be_had_is_told_before_any_work(tmp_path: Path) -> None:
    stand_in = prepared(tmp_path / "own")
    (line,) = refused(stand_in, "--set", "budget.parameters=0.01")
    assert re.fullmatch(
        r"budget\.parameters: 0\.01 of the parameters cannot be reached: 0\.\d+ stay when all "
        r"heads, neurons, channels and ranks are gone that may go: raise it to more than that",
        line,
    )
    content = stand_in.content()
    content["budget"]["parameters"] = 0.01
    stand_in.write(content)
    assert faults(invoke("check", stand_in.recipe)) == [line]
    words = text_classification(tmp_path / "words")
    (line,) = refused(words, "--set", "budget={parameters: 0.9, kinds: [head, channel]}")
    assert line.startswith("budget.kinds: model type 'distilbert' has no convolutional front end")


@pytest.mark.parametrize(
    ("budget", "fault"),
    [
        ({"parameters": 0.5, "multiply_adds": 0.5}, "there are parameters and multiply_adds"),
        ({"parameters": 0.5, "fraction": 0.5}, "there are fraction and parameters"),
        ({"parameters": 0.5, "neurons": 0.5}, "neurons contradicts parameters"),
        ({"multiply_adds": 0.5, "channels": 0.5}, "channels contradicts multiply_adds"),
        ({"parameters": 0.5, "scope": "layerwise"}, "scope: layerwise contradicts parameters"),
        ({"fraction": 0.5, "kinds": ["head"]}, "kinds limits what parameters, multiply_adds"),
        ({"parameters": 0.5, "kinds": ["head", "head"]}, "name each kind once"),
        ({"parameters": 0.5, "kinds": []}, "at least 1"),
        ({"size_mb": 1.0, "parameters": 0.5}, "there are parameters and size_mb"),
        ({"metric_drop": 0.01, "neurons": 0.5}, "neurons contradicts metric_drop"),
        ({"size_mb": 0}, "greater than 0"),
        ({"metric_drop": 1}, "less than 1"),
        ({"parameters": 1.0}, "less than 1"),
        ({"parameters": 0}, "greater than 0"),
    ],
)
def test_budgets_that_contradict_themselves(budget: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Budget.model_validate(budget)


def test_the_published_method_takes_heads_alone(tmp_path: Path) -> None:
    stand_in = prepared(tmp_path / "own")
    paper = ("--set", "attribution={method: hib, paper: true}")
    (line,) = refused(stand_in, *paper, "--set", "budget={parameters: 0.9, kinds: [neuron]}")
    assert line == (
        "recipe.yaml: budget.kinds: neuron, but attribution.paper takes heads alone: leave one of "
        "them out"
    )
    said = invoke("check", stand_in.recipe, *paper, "--set", "budget={parameters: 0.95}")
    assert "would remove heads until 95.0% of the parameters are left" in said.stdout


@pytest.mark.slow
def test_files_take_no_more_than_asked(pruned: StandIn, tmp_path: Path) -> None:
    whole = manifest(pruned).original.size_bytes / 1e6
    asked = round(0.85 * whole, 4)
    shutil.copytree(pruned.root / "out", tmp_path / "out")
    result = run(pruned, "--set", f"budget={{size_mb: {asked}}}", output=tmp_path / "out")
    assert result.exit_code == 0, result.output or result.exception
    size = (tmp_path / "out" / "onnx" / "model.onnx").stat().st_size / 1e6
    assert 0.97 * asked < size <= asked
    assert f"The budget leaves {asked:g} MB of files" in (tmp_path / "out/report.md").read_text()
    (line,) = faults(run(pruned, "--set", "budget={size_mb: 0.01}", output=tmp_path / "none"))
    assert line.startswith("budget.size_mb: 0.01 MB cannot be reached: the weights alone take")
    assert not (tmp_path / "none").exists()
    fp16 = ("--set", "gates.variant=pruned-fp16", "--set", "export.variants=[fp32, fp16]")
    (line,) = faults(
        run(pruned, "--set", f"budget={{size_mb: {asked}}}", *fp16, output=tmp_path / "none")
    )
    assert line.startswith("budget.size_mb: the size of pruned-fp16 is not known before it is made")


def test_a_loss_is_measured_on_clips_kept_out_of_scoring_and_repair(
    pruned: StandIn, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(pruned, "--set", "budget={metric_drop: 0.9}", output=out)
    assert result.exit_code == 0, result.output or result.exception
    found = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert found.budget is not None
    # Nearly anything may be lost: six halvings end within a 64th of all that may go.
    least = 0.546
    assert least < found.budget.reached < least + (1 - least) / 32
    # The stand-in has 20 calibration clips.
    assert found.calibration.n == 15
    assert found.repair is not None
    assert found.repair.clips + found.repair.held_out == 15
    assert (
        "costs at most 90 points on calibration clips held out" in (out / "report.md").read_text()
    )


TARGETS = "parameters=0.8,0.9"


@pytest.fixture(scope="module")
def frontier(
    pruned: StandIn, drawing: Callable[[], contextlib.AbstractContextManager[None]]
) -> tuple[Path, str]:
    out = pruned.root / "frontier"
    rivals = ("--set", "benchmark.rivals=true", "--set", "export.variants=[fp32, int8]")
    with drawing():
        result = invoke("frontier", pruned.recipe, "--targets", TARGETS, "--output", out, *rivals)
    assert result.exit_code == 0, result.output or result.exception
    return out, result.stdout


def test_a_frontier_scores_once_and_measures_every_budget(frontier: tuple[Path, str]) -> None:
    out, said = frontier
    found = Frontier.model_validate_json((out / "frontier.json").read_text())
    assert [one.label for one in found.points] == ["parameters-0.9", "parameters-0.8"]
    assert [one.name for one in found.rivals] == ["original", "original-int8"]
    whole = found.rivals[0]
    for point in found.points:
        own = Manifest.model_validate_json((out / point.directory / "manifest.json").read_text())
        assert own.budget == point.budget
        assert [one.name for one in point.variants] == ["pruned", "pruned-int8"]
        assert point.variants[0].parameters <= point.budget.asked * whole.parameters
        assert point.variants[0].metric == own.variant("pruned").metric
        assert len(point.variants[0].latency) == len(whole.latency)
    second = said.partition("parameters-0.8:")[2]
    shared = words_of_steps(second)
    assert shared["export-original"] == shared["original"] == shared["attribute"] == "done"
    assert shared["attribute-channels"] == "done"
    assert shared["repair"] != "done"
    assert (out / "frontier.png").stat().st_size > 10_000
    page = (out / "frontier.md").read_text()
    # Two variants each, and what went.
    assert page.count("| 80 % |") == page.count("| 90 % |") == 3


@pytest.mark.slow
def test_a_frontier_is_taken_up_point_by_point(pruned: StandIn, frontier: tuple[Path, str]) -> None:
    out, _ = frontier
    before = (out / "frontier.json").read_text()
    rivals = ("--set", "benchmark.rivals=true", "--set", "export.variants=[fp32, int8]")
    options = ("--targets", TARGETS, "--output", out, "--quiet")
    again = invoke("frontier", pruned.recipe, *options, *rivals)
    assert again.exit_code == 0
    assert "computing" not in again.stdout
    lines = [line for line in again.stdout.splitlines() if len(line.split()) > 1]
    assert {line.split()[0] for line in lines if " done " not in line} == {"load", "report"}
    found = Frontier.model_validate_json((out / "frontier.json").read_text())
    assert found.points == Frontier.model_validate_json(before).points


@pytest.mark.parametrize(
    ("targets", "fault"),
    [
        ("0.5,0.3", "--targets: 0.5,0.3: give it as parameters=0.7,0.5,0.3"),
        ("parameters=", "--targets: parameters=: give it as parameters=0.7,0.5,0.3"),
        ("parameters=half", "--targets: 'half' is not a number: give it as"),
        ("parameters=1.5", "--targets: 1.5 is not between 0 and 1: give it as"),
        ("parameters=nan", "--targets: nan is not between 0 and 1: give it as"),
        ("paramters=0.5", "--targets: unknown budget 'paramters' (did you mean 'parameters'?)"),
        ("parameters=0.8,0.01", "budget.parameters: 0.01 of the parameters cannot be reached"),
    ],
)
def test_targets_that_cannot_be(targets: str, fault: str, tmp_path: Path, pruned: StandIn) -> None:
    out = tmp_path / "none"
    result = invoke("frontier", pruned.recipe, "--targets", targets, "--output", out)
    (line,) = faults(result)
    assert line.startswith(fault)
    assert not out.exists()
