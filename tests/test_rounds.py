"""Heads removed in rounds: shares worked out by hand, and runs of the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from processes import finish, kill_after
from standin import ALL_HEADS, CALIBRATION_CLIPS, StandIn
from test_planning import THREE_LAYERS, removed, scores
from tiny_models import HEADS, LAYERS
from transformers import PreTrainedModel

from hibprune.attribution.session import Sample, Session
from hibprune.cli import main
from hibprune.compression.plan import Budget, Round, Schedule, make_plan
from hibprune.compression.remove import copy_without
from hibprune.compression.repair import repair
from hibprune.execution.files import sha256_of
from hibprune.execution.steps import Done
from hibprune.models.attention import heads_of
from hibprune.models.layerwise import CalibrationClip
from hibprune.recipe import LoadedRecipe, load_recipe
from hibprune.records.units import Head, Plan, Scores
from hibprune.stages.load import load
from hibprune.stages.rounds import Choice, FinishedRound

# Shares by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "rounds", "gone_after"),
    [
        (6, 1, [6]),
        (6, 3, [2, 4, 6]),
        (7, 3, [2, 5, 7]),
        (10, 4, [2, 5, 8, 10]),
        (3, 3, [1, 2, 3]),
    ],
)
def test_heads_due_after_each_round(total: int, rounds: int, gone_after: list[int]) -> None:
    assert [Round(number, rounds).due(total) for number in range(1, rounds + 1)] == gone_after


def without(all_scores: Scores, gone: tuple[Head, ...]) -> Scores:
    """The same scores of the heads that are left."""
    left = [place for place, head in enumerate(all_scores.heads) if head not in gone]
    return all_scores.model_copy(
        update={
            "heads": tuple(all_scores.heads[place] for place in left),
            "per_sample": tuple(tuple(row[i] for i in left) for row in all_scores.per_sample),
        }
    )


def plans(all_scores: Scores, budget: Budget, rounds: int) -> list[Plan]:
    found: list[Plan] = []
    for number in range(1, rounds + 1):
        gone = tuple(head for plan in found for head in plan.removed)
        found.append(make_plan(without(all_scores, gone), budget, Round(number, rounds, gone)))
    return found


def test_a_global_budget_goes_share_by_share() -> None:
    first, second, third = plans(THREE_LAYERS, Budget(fraction=0.5), 3)
    assert [removed(plan) for plan in (first, second, third)] == [
        [(0, 1), (1, 0)],
        [(1, 2), (2, 3)],
        [(0, 0), (0, 2)],
    ]
    assert [plan.total for plan in (first, second, third)] == [12, 10, 8]


def test_a_layerwise_budget_goes_share_by_share_in_every_layer() -> None:
    first, second = plans(THREE_LAYERS, Budget(heads=3, scope="layerwise"), 2)
    # Half of three is two, as 1.5 rounds to the even number.
    assert removed(first) == [(0, 0), (0, 1), (1, 0), (1, 2), (2, 0), (2, 3)]
    assert removed(second) == [(0, 2), (1, 1), (2, 1)]


@pytest.mark.parametrize("rounds", [1, 2, 3, 5])
@pytest.mark.parametrize("scope", ["global", "layerwise"])
@pytest.mark.parametrize("least", [0, 1, 2])
def test_unchanging_scores_give_the_plan_of_one_round(rounds: int, scope: Any, least: int) -> None:
    budget = Budget(fraction=0.5, scope=scope, min_heads_per_layer=least)
    whole = make_plan(THREE_LAYERS, budget)
    count = Schedule(rounds=rounds).rounds_for(budget, THREE_LAYERS.heads)
    parts = plans(THREE_LAYERS, budget, count)
    assert sorted(head for plan in parts for head in plan.removed) == list(whole.removed)
    assert parts[-1].kept == whole.kept


@pytest.mark.parametrize(
    ("budget", "rounds", "expected"),
    [
        ({"heads": 5}, 3, 3),
        ({"heads": 5}, 9, 5),
        ({"fraction": 0.25}, 4, 3),
        ({"heads": 2, "scope": "layerwise"}, 9, 2),
        ({"fraction": 0.5, "scope": "layerwise"}, 2, 2),
        ({"fraction": 0.01}, 4, 1),
    ],
)
def test_no_more_rounds_than_heads_to_go(
    budget: dict[str, Any], rounds: int, expected: int
) -> None:
    count = Schedule(rounds=rounds).rounds_for(Budget.model_validate(budget), THREE_LAYERS.heads)
    assert count == expected


def test_the_choice_holds_every_heads_last_score_and_all_that_went() -> None:
    all_heads = scores((1.0, 2.0), (3.0, 4.0))
    later = without(scores((0.0, 9.0), (7.0, 8.0)), (Head(0, 0),))
    choice = Choice(
        tuple(
            FinishedRound(Done(f"s{n}", own, 1.0, False), Done(f"p{n}", plan, 0.5, False))
            for n, (own, plan) in enumerate(
                (
                    (all_heads, make_plan(all_heads, Budget(heads=1))),
                    (later, make_plan(later, Budget(heads=1))),
                )
            )
        )
    )
    assert choice.scores.values == {
        Head(0, 0): 1.0, Head(0, 1): 9.0, Head(1, 0): 7.0, Head(1, 1): 8.0
    }  # fmt: skip
    assert removed(choice.plan.result) == [(0, 0), (1, 0)]
    assert choice.plan.result.kept == (Head(0, 1), Head(1, 1))
    assert (choice.plan.key, choice.plan.seconds) == ("p1", 1.0)


# Runs ------------------------------------------------------------------------------------------

BEFORE = ["export-original", "original"]
AFTER = ["prune", "repair", "export", "pruned", "benchmark", "example"]
ROUNDS = ["attribute", "plan", "attribute-2", "plan-2", "attribute-3", "plan-3"]
THREE = ("--set", "schedule.rounds=3", "--set", "budget={heads: 5}")


def run(recipe: Path, output: Path, *options: str) -> list[str]:
    """Run to the end; returns the steps that were done anew."""
    arguments = ["run", str(recipe), "--output", str(output), "--quiet", *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output or result.exception
    return redone(result.stdout)


def redone(said: str) -> list[str]:
    lines = [line.split() for line in said.splitlines()]
    steps = (*BEFORE, *ROUNDS, *AFTER)
    return [line[0] for line in lines if line and line[0] in steps and line[1] != "done"]


def step(output: Path, name: str) -> Any:
    return json.loads((output / "steps" / f"{name}.json").read_text())


def heads(listed: list[dict[str, int]]) -> list[tuple[int, int]]:
    return [(head["layer"], head["index"]) for head in listed]


@pytest.fixture(scope="module")
def recipe(stand_ins: Callable[[str], Path]) -> Path:
    return stand_ins("keyword_spotting") / "recipe.yaml"


@pytest.fixture(scope="module")
def output(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in three rounds."""
    place = tmp_path_factory.mktemp("rounds") / "out"
    assert run(recipe, place, *THREE) == [*BEFORE, *ROUNDS, *AFTER]
    return place


def test_one_round_is_a_run_without_a_schedule(
    recipe: Path, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    run(recipe, tmp_path, "--set", "schedule.rounds=1")
    plain = finished("keyword_spotting")
    for name in ("attribute", "plan", "prune"):
        assert step(tmp_path, name)["key"] == step(plain, name)["key"], name
        results = [step(place, name)["result"] for place in (tmp_path, plain)]
        for result in results:
            result.pop("effort", None)  # takes its time
        assert results[0] == results[1], name
    weights = [sha256_of(place / "model.safetensors") for place in (tmp_path, plain)]
    assert weights[0] == weights[1]


def test_a_round_scores_and_plans_what_is_left(output: Path) -> None:
    gone: list[tuple[int, int]] = []
    everything = {(layer, index) for layer in range(LAYERS) for index in range(HEADS)}
    for suffix, share in (("", 2), ("-2", 1), ("-3", 2)):
        scored = heads(step(output, f"attribute{suffix}")["result"]["heads"])
        plan = step(output, f"plan{suffix}")["result"]
        assert set(scored) == everything - set(gone)
        assert not set(heads(plan["removed"])) & set(gone)
        assert set(heads(plan["removed"])) | set(heads(plan["kept"])) == set(scored)
        gone += heads(plan["removed"])
        assert len(plan["removed"]) == share
    config = json.loads((output / "config.json").read_text())
    pruned = {(int(n), head) for n, own in config["pruned_heads"].items() for head in own}
    assert pruned == set(gone)


def model_and_samples(loaded: LoadedRecipe) -> tuple[PreTrainedModel, list[Sample]]:
    """What a method is given in a run of a recipe."""
    material = load(loaded, torch.device("cpu"))
    checkpoint, limits = material.checkpoint, loaded.recipe.calibration.durations
    samples = []
    for clip in material.calibration.utterances:
        assert clip.target is not None
        waveform = checkpoint.read(clip.content, limits)
        encoded = loaded.recipe.task.encode(clip.target, checkpoint.vocabulary)
        samples.append(Sample(clip.id, checkpoint.calibration_inputs(waveform), encoded))
    return checkpoint.model, samples


UNREPAIRED = ("--set", "removal.repair=none")


@pytest.fixture(scope="module")
def unrepaired(recipe: Path, output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in three rounds that leaves the weights that stay as they were."""
    place = Path(shutil.copytree(output, tmp_path_factory.mktemp("unrepaired") / "out"))
    assert run(recipe, place, *THREE, *UNREPAIRED) == [*ROUNDS[2:], *AFTER]
    return place


@pytest.mark.parametrize("kind", ["least-squares", "none"])
def test_later_rounds_score_the_pruned_model(
    recipe: Path, output: Path, unrepaired: Path, tmp_path: Path, kind: str
) -> None:
    """The scores of round 2 are those of a model without the heads of round 1, scored by itself.

    Where what stays is repaired, of the repaired one.
    """
    loaded = load_recipe(recipe)
    model, samples = model_and_samples(loaded)
    assert len(heads_of(model)) == ALL_HEADS
    if kind == "none":
        output = unrepaired
    gone = tuple(Head(*head) for head in heads(step(output, "plan")["result"]["removed"]))
    smaller = copy_without(model, gone)
    before = [weight.clone() for weight in smaller.parameters()]
    if kind == "least-squares":
        clips = [CalibrationClip(sample.inputs) for sample in samples]
        repair(model, smaller, clips, kind, tmp_path, 2**30)
    moved = [(a - b).abs().max() for a, b in zip(smaller.parameters(), before, strict=True)]
    assert (max(moved) > 1e-4) == (kind == "least-squares")
    method = loaded.recipe.attribution.for_task("keyword-spotting")
    expected = method.attribute(smaller, samples, loaded.recipe.task.loss, Session())
    found = step(output, "attribute-2")["result"]
    assert heads(found["heads"]) == [(head.layer, head.index) for head in heads_of(smaller)]
    np.testing.assert_allclose(found["per_sample"], expected.per_sample, atol=1e-5)
    first = Scores.model_validate(step(output, "attribute")["result"])
    change = np.subtract(without(first, gone).per_sample, found["per_sample"])
    assert np.abs(change).max() > 3e-4


def test_repair_changes_what_later_rounds_find(output: Path, unrepaired: Path) -> None:
    rows = [step(place, "attribute-2")["result"]["per_sample"] for place in (output, unrepaired)]
    assert np.abs(np.subtract(*rows)).max() > 1e-4


def test_manifest_and_report_tell_of_the_rounds(output: Path) -> None:
    manifest = json.loads((output / "manifest.json").read_text())
    by_round = [
        [(int(n), head) for n, own in one["removed"].items() for head in own]
        for one in manifest["rounds"]
    ]
    plans = [
        heads(step(output, f"plan{suffix}")["result"]["removed"]) for suffix in ("", "-2", "-3")
    ]
    assert by_round == plans
    assert sum(map(len, manifest["heads"]["removed"].values())) == 5
    assert manifest["attribution"]["split_half"] == manifest["rounds"][0]["split_half"]
    assert set(ROUNDS) <= manifest["steps"].keys()
    assert manifest["attribution"]["seconds"] == pytest.approx(
        sum(one["seconds"] for one in manifest["rounds"])
    )
    report = (output / "report.md").read_text()
    assert "Heads went in 3 rounds" in report
    assert "on the model without the others, repaired by least-squares." in report
    rows = [line for line in report.splitlines() if line.startswith(("| 1 | ", "| 2 | ", "| 3 | "))]
    for number, (row, went) in enumerate(zip(rows, by_round, strict=False), start=1):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [str(number), str(len(went))]
        assert cells[2].startswith(f"{went[0][0]}: {went[0][1]}")


def test_layers_keep_numbers_of_their_own(recipe: Path, tmp_path: Path) -> None:
    options = ("--set", "budget={heads: 3, scope: layerwise}", "--set", "schedule.rounds=8")
    run(recipe, tmp_path, *options, "--set", "attribution={method: magnitude}")
    plans = [
        heads(step(tmp_path, f"plan{suffix}")["result"]["removed"]) for suffix in ("", "-2", "-3")
    ]
    assert not (tmp_path / "steps/plan-4.json").exists()
    assert [[layer for layer, _ in plan] for plan in plans] == [list(range(LAYERS))] * 3
    assert len({head for plan in plans for head in plan}) == 3 * LAYERS


@pytest.mark.slow
def test_killed_between_rounds_takes_up_without_scoring_again(recipe: Path, tmp_path: Path) -> None:
    place = tmp_path / "out"
    slow = ("--set", "schedule.rounds=2", "--set", "attribution.steps=60")
    arguments = ("run", str(recipe), "--output", str(place), "--quiet", *slow)
    partial = place / "steps/attribute-2.partial.json"
    kill_after("steps/attribute-2.partial.json", tmp_path / "said", *arguments)
    assert not (place / "steps/attribute-2.json").exists()
    scored = len(json.loads(partial.read_text())["rows"])
    assert 0 < scored < CALIBRATION_CLIPS
    said = finish(tmp_path / "said", *arguments)
    assert f"attribute-2: going on after {scored} samples scored before" in said.splitlines()
    assert redone(said) == [*ROUNDS[2:4], *AFTER]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed=0", []),
        # What goes first is no longer the same; the whole model's scores are.
        ("schedule.rounds=1", ["plan", *AFTER]),
        # Two of six in the first round, as of five: the second round scores the same model.
        ("budget={heads: 6}", ["plan", "plan-2", "attribute-3", "plan-3", *AFTER]),
    ],
)
def test_a_changed_schedule_redoes_what_it_reaches(
    recipe: Path, output: Path, tmp_path: Path, override: str, expected: list[str]
) -> None:
    place = Path(shutil.copytree(output, tmp_path / "copy"))
    assert run(recipe, place, *THREE, "--set", override) == expected


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("{rounds: 0}", "schedule.rounds: should be greater than or equal to 1, not 0"),
        ("{round: 2}", "schedule.round: unknown key (did you mean 'rounds'?)"),
    ],
)
def test_a_schedule_is_checked(stand_in: StandIn, value: str, fault: str) -> None:
    result = CliRunner().invoke(main, ["check", str(stand_in.recipe), "--set", f"schedule={value}"])
    assert result.exit_code == 2
    assert fault in result.stderr
