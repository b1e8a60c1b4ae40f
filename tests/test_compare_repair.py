"""`hibprune compare --repair`: points of removed and repaired models, on tiny stand-ins."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import compare, compared, faults, invoke
from processes import finish, kill_after
from standin import CALIBRATION_CLIPS, StandIn, loud_keyword_spotting

import hibprune.comparing.chain
import hibprune.comparing.repairing
from hibprune.comparing.repairing import FOLDER
from hibprune.records.comparison import Comparison, Curve
from hibprune.records.manifest import Manifest

METHODS = ("--methods", "hib,reconstruction,random", "--fractions", "0.4,0.6", "--seeds", "2")
REPAIRS = ("--repair", "least-squares,none,mean")
"""In another order than the one they are shown in."""


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return loud_keyword_spotting(tmp_path_factory.mktemp("speaking") / "task")


@pytest.fixture(scope="module")
def done(
    speaking: StandIn, drawing: Callable[[], contextlib.AbstractContextManager[None]]
) -> tuple[Path, Comparison]:
    """The spotter compared with three repairs in the directory of its finished, repaired run."""
    output = speaking.root / "out"
    ran = invoke("run", speaking.recipe, "--output", output, "--quiet")
    assert ran.exit_code == 0, ran.output or ran.exception
    with drawing():
        return output, compared(speaking, *METHODS, *REPAIRS, output=output)


@pytest.fixture
def again(done: tuple[Path, Comparison], speaking: StandIn, tmp_path: Path) -> StandIn:
    """The spotter with that directory as `out`, to go on from."""
    return StandIn(Path(shutil.copytree(speaking.root, tmp_path / "task")))


def curve_of(comparison: Comparison, label: str, repair: str, scope: str = "global") -> Curve:
    (found,) = [
        curve
        for curve in comparison.of_scope(scope)
        if curve.label.startswith(label) and curve.repair == repair
    ]
    return found


def records(output: Path, folder: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in (output / "steps" / folder).glob("*.json")]


# The numbers ---------------------------------------------------------------------------------


def test_a_point_is_what_a_run_with_that_plan_and_repair_measures(
    done: tuple[Path, Comparison],
) -> None:
    output, comparison = done
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    assert manifest.repair is not None
    assert manifest.repair.kind == "least-squares"
    pruned = manifest.variants[1].metric
    point, bare = (
        next(p for p in curve_of(comparison, "hib", repair).points if p.fraction == 0.4)
        for repair in ("least-squares", "none")
    )
    assert point.heads == bare.heads == manifest.heads.removed
    assert (point.value, point.interval) == (pruned.value, pruned.interval)
    measured = json.loads((output / "steps/measure-pruned.json").read_text())["result"]
    removed = {str(layer): list(heads) for layer, heads in point.heads.items()}
    (own,) = [
        one["result"]["evaluation"]
        for one in records(output, FOLDER)
        if one["inputs"]["removed"] == removed and one["inputs"]["repair"]["kind"] != "mean"
    ]
    assert own == measured["evaluation"], "also clip by clip"
    (silenced,) = [
        one["result"] for one in records(output, "evaluate") if one["inputs"]["silent"] == removed
    ]
    assert own["errors"] != silenced["errors"], "a repair that changes nothing would prove nothing"


def test_without_repair_it_is_what_it_was(
    done: tuple[Path, Comparison], speaking: StandIn, tmp_path: Path
) -> None:
    output, comparison = done
    plain = compared(speaking, *METHODS, output=tmp_path / "plain")
    bare = tuple(curve for curve in comparison.curves if curve.repair == "none")
    assert plain.curves == bare
    assert (plain.repaired, [one.kind for one in plain.repairs]) == (False, ["none"])
    assert plain.whole == comparison.whole
    page = (tmp_path / "plain/compare.md").read_text()
    assert "repair" not in page.split("```bash")[0]
    assert "were silenced, which gives what removing them gives, and the" in page
    # The very records that comparisons have always kept, so that old directories serve.
    kept = records(output, "evaluate")
    assert {frozenset(one["inputs"]) for one in kept} == {
        frozenset({"model", "task", "device", "validation", "metric", "silent"})
    }
    names = {path.name for path in (output / "steps/evaluate").iterdir()}
    assert names == {path.name for path in (tmp_path / "plain/steps/evaluate").iterdir()}


def test_areas_are_held_against_those_without_repair(done: tuple[Path, Comparison]) -> None:
    _, comparison = done
    assert [one.kind for one in comparison.repairs] == ["none", "mean", "least-squares"]
    assert len(comparison.curves) == 2 * 3 * 3
    for curve in comparison.curves:
        bare = curve_of(comparison, curve.label, "none", curve.scope)
        reference = curve_of(comparison, comparison.reference, curve.repair, curve.scope)
        assert curve.area is not None
        assert bare.area is not None
        assert reference.area is not None
        if curve.repair == "none":
            assert curve.to_unrepaired is None
        else:
            assert curve.to_unrepaired is not None
            gain = curve.area.value - bare.area.value
            assert curve.to_unrepaired.value == pytest.approx(gain)
            low, high = curve.to_unrepaired.interval
            assert low <= gain <= high
        if curve.to_reference is not None:
            difference = curve.area.value - reference.area.value
            assert curve.to_reference.value == pytest.approx(difference)


def test_what_repair_took_is_told(done: tuple[Path, Comparison]) -> None:
    output, comparison = done
    bare, *tried = comparison.repairs
    assert (bare.clips, bare.seconds) == (None, None)
    for one in tried:
        assert one.clips == CALIBRATION_CLIPS
        assert one.seconds is not None
        assert one.seconds > 0
    sets = {"mean": 0, "least-squares": 0}
    for one in records(output, FOLDER):
        sets[one["inputs"]["repair"]["kind"]] += 1
    assert sets["mean"] == sets["least-squares"] == len(records(output, "evaluate")) - 1
    assert comparison.evaluations == len(records(output, "evaluate")) + sum(sets.values())


# The files -----------------------------------------------------------------------------------


def test_rankings_and_repairs_stand_in_one_table(done: tuple[Path, Comparison]) -> None:
    output, comparison = done
    page = (output / "compare.md").read_text()
    for scope in comparison.scopes:
        _, table = page.split(f"({scope})\n")[1].split("| share removed | repair |")[:2]
        table = table.split("\n\n")[0]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:]]
        curves = {(curve.label, curve.repair): curve for curve in comparison.of_scope(scope)}
        assert [tuple(row[:2]) for row in rows] == [
            (method.label, repair.kind)
            for method in comparison.methods
            for repair in comparison.repairs
        ]
        for label, repair, *cells in rows:
            shown = [float(cell.split(" ")[0]) / 100 for cell in cells]
            heights = [point.value for point in curves[label, repair].points]
            assert shown == pytest.approx(heights, abs=0.005)
    assert "against no repair" in page
    assert f"repaired on {CALIBRATION_CLIPS} calibration clips, without labels" in page
    with (output / "compare.csv").open() as file:
        told = list(csv.DictReader(file))
    assert [(one["method"], one["repair"], one["scope"], float(one["value"])) for one in told] == [
        (curve.label, curve.repair, curve.scope, point.value)
        for curve in comparison.curves
        for point in curve.points
    ]
    assert Comparison.model_validate_json((output / "compare.json").read_text()) == comparison


@pytest.mark.draws
def test_each_repair_has_a_panel(
    done: tuple[Path, Comparison], speaking: StandIn, tmp_path: Path
) -> None:
    output, _ = done
    place = tmp_path / "one"
    shutil.copytree(output, place)
    compared(speaking, *METHODS, output=place)
    heights = []
    for directory in (place, output):
        root = xml.etree.ElementTree.parse(directory / "compare-global.svg").getroot()
        heights.append(float(root.attrib["height"].removesuffix("pt")))
    assert heights[1] == pytest.approx(3 * heights[0])


def test_the_terminal_shows_the_table(again: StandIn) -> None:
    result = compare(again, *METHODS, *REPAIRS)
    assert result.exit_code == 0, result.output or result.exception
    start = result.stdout.index("global: mean accuracy")
    lines = result.stdout[start:].splitlines()
    assert sum(line.split()[0] == "reconstruction" for line in lines if line) == 2 * 3
    for repair in ("none", "mean", "least-squares"):
        assert sum(f"  {repair} " in line for line in lines) == 2 * 3


# Taken up ------------------------------------------------------------------------------------


def test_nothing_is_repaired_or_measured_twice(
    again: StandIn, done: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(hibprune.comparing.repairing, "repaired_copy", fail)
    monkeypatch.setattr(hibprune.comparing.repairing, "evaluate_models", fail)
    monkeypatch.setattr(hibprune.comparing.chain, "evaluate_silenced", fail)
    repeated = compared(again, *METHODS, *REPAIRS)
    assert (repeated.curves, repeated.repairs) == (done[1].curves, done[1].repairs)


@pytest.fixture
def repairs_made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The sets of heads that are repaired from here on."""
    made: list[tuple[Any, ...]] = []
    repaired_copy = hibprune.comparing.repairing.repaired_copy

    def counted(run: Any, plan: Any, *rest: Any) -> Any:
        made.append(plan)
        return repaired_copy(run, plan, *rest)

    monkeypatch.setattr(hibprune.comparing.repairing, "repaired_copy", counted)
    return made


def test_only_what_changed_is_repaired_again(
    again: StandIn, repairs_made: list[tuple[Any, ...]]
) -> None:
    options = ("--methods", "reconstruction", "--scope", "global", "--fractions", "0.4,0.6")
    compared(again, *options, "--repair", "least-squares")
    assert len(repairs_made) == 0
    compared(again, *options, "--repair", "scale")
    assert len(repairs_made) == 2, "another repair"
    more = ("--set", "calibration.repair_samples=16")
    compared(again, *options, "--repair", "scale", *more)
    assert len(repairs_made) == 4, "other clips"
    compared(again, *options, "--repair", "none", *more)
    assert len(repairs_made) == 4


def test_two_metrics_share_a_repair(
    stand_in_of: Callable[[str], StandIn], repairs_made: list[tuple[Any, ...]]
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    options = ("--methods", "magnitude", "--fractions", "0.5", "--points", "0.25,0.5")
    comparison = compared(stand_in, *options, "--scope", "global", "--repair", "least-squares")
    assert [len(plan) for plan in repairs_made] == [4, 2], "half of the heads once, for both"
    (curve,), (points,) = comparison.curves, comparison.points
    assert (curve.metric, points.metric) == ("token accuracy", "WER")
    assert {curve.repair, points.repair} == {"least-squares"}
    assert [point.removed for point in points.points] == [2, 4]
    assert curve.to_unrepaired is None, "not asked for"


def test_refinement_follows_only_the_fit_it_refines(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--methods", "magnitude", "--fractions", "0.5", "--scope", "global")
    refined = ("--set", "removal.refine={steps: 2}", "--repair", "mean,least-squares")
    comparison = compared(stand_in, *options, *refined)
    assert {one.kind: one.refine_steps for one in comparison.repairs} == {
        "mean": 0,
        "least-squares": 2,
    }
    page = (stand_in.root / "out/compare.md").read_text()
    assert "by least-squares and 2 gradient steps a layer" in page


@pytest.mark.slow
def test_a_killed_comparison_goes_on(stand_ins: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = (
        "compare", str(stand_ins("keyword_spotting") / "recipe.yaml"), "--output", str(output),
        "--methods", "magnitude,random", "--repair", "least-squares", "--quiet",
    )  # fmt: skip
    kept = output / "steps" / FOLDER
    kill_after(f"steps/{FOLDER}/*.json", tmp_path / "said", *arguments)
    assert not (output / "compare.json").exists()
    sets = len(list(kept.glob("[!.]*.json")))
    said = finish(tmp_path / "said", *arguments).splitlines()
    # On a slow machine a line of progress stands before the last one.
    evaluated = [line for line in said if line.startswith("evaluate least-squares")][-1]
    assert f", {sets} of them before" in evaluated
    assert (output / "compare.json").is_file()


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--repair", "lest-squares"),
         "--repair: unknown repair 'lest-squares' (did you mean 'least-squares'?)"),
        (("--repair", "none,glue"),
         "--repair: unknown repair 'glue': one of none, mean, scale, least-squares"),
        (("--repair", " , "), "--repair: nothing in it"),
        (("--repair", "none,"), None),
        (("--repair", "mean,mean"), None),
    ],
)  # fmt: skip
def test_a_bad_repair_is_one_plain_line(
    stand_in: StandIn, options: tuple[str, ...], fault: str | None
) -> None:
    few = ("--methods", "magnitude", "--fractions", "0.5", "--scope", "global")
    result = compare(stand_in, *few, *options)
    if fault is None:
        assert result.exit_code == 0, result.output or result.exception
        return
    assert faults(result) == [fault]
    assert not (stand_in.root / "out").exists()


def test_too_few_clips_for_a_repair_is_one_plain_line(stand_in: StandIn) -> None:
    few = ("--methods", "magnitude", "--fractions", "0.5", "--scope", "global")
    result = compare(stand_in, *few, "--repair", "least-squares", "--set", "calibration.samples=1")
    (fault,) = faults(result)
    assert "removal.repair:" in fault
    assert "calibration.repair_samples" in fault
    assert not (stand_in.root / "out/compare.json").exists()
