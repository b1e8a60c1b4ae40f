"""`hibprune compare` from its options to its files, on tiny stand-ins."""

from __future__ import annotations

import csv
import json
import shutil
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import compare, compared, faults, invoke
from processes import finish, kill_after
from standin import ALL_HEADS, CALIBRATION_CLIPS, VALIDATION_CLIPS, StandIn, loud_keyword_spotting

import hibprune.comparing.chain
from hibprune.attribution import HeadInformationBottleneck
from hibprune.attribution.methods import Magnitude
from hibprune.models.layouts import Family
from hibprune.records.comparison import Comparison
from hibprune.records.manifest import Manifest

FEW = ("--methods", "hib,magnitude,random", "--fractions", "0.2,0.4,0.6", "--seeds", "3")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    return loud_keyword_spotting(tmp_path_factory.mktemp("speaking") / "task")


@pytest.fixture(scope="module")
def done(speaking: StandIn) -> tuple[Path, Comparison]:
    """The spotter compared in the directory of its finished run."""
    output = speaking.root / "out"
    ran = invoke("run", speaking.recipe, "--output", output, "--quiet", "--set=removal.repair=none")
    assert ran.exit_code == 0, ran.output or ran.exception
    return output, compared(speaking, *FEW, output=output)


@pytest.fixture
def again(done: tuple[Path, Comparison], speaking: StandIn, tmp_path: Path) -> StandIn:
    """The spotter with that directory as `out`, to go on from."""
    return StandIn(Path(shutil.copytree(speaking.root, tmp_path / "task")))


# The numbers ---------------------------------------------------------------------------------


def test_a_point_is_what_a_run_with_that_plan_measures(done: tuple[Path, Comparison]) -> None:
    output, comparison = done
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    baseline, pruned = (one.metric for one in manifest.variants)
    assert comparison.whole["accuracy"].value == baseline.value
    assert baseline.value != pruned.value, "a plan that changes nothing would prove nothing"
    curve = comparison.of_scope("global")[0]
    (point,) = [point for point in curve.points if point.fraction == 0.4]
    assert point.heads == manifest.heads.removed
    assert (point.value, point.interval) == (pruned.value, pruned.interval)
    record = json.loads((output / "steps/measure-pruned.json").read_text())["result"]["evaluation"]
    kept = [json.loads(path.read_text()) for path in (output / "steps/evaluate").glob("*.json")]
    removed = {str(layer): list(heads) for layer, heads in point.heads.items()}
    (own,) = [one["result"] for one in kept if one["inputs"]["silent"] == removed]
    assert own == record, "also clip by clip"


def test_shares_are_those_really_removed(done: tuple[Path, Comparison]) -> None:
    _, comparison = done
    shares = {
        scope: [(p.fraction, p.removed, p.share) for p in comparison.of_scope(scope)[0].points]
        for scope in comparison.scopes
    }
    # 8 heads; in either of 2 layers 4, of which 0.2 are none and 0.4 one.
    assert shares == {
        "global": [(0.2, 1, 0.125), (0.4, 3, 0.375), (0.6, 4, 0.5)],
        "layerwise": [(0.4, 2, 0.25), (0.6, 4, 0.5)],
    }


def test_areas_follow_from_the_points(done: tuple[Path, Comparison]) -> None:
    _, comparison = done
    for curve in comparison.curves:
        shares = [0.0, *(point.share for point in curve.points)]
        values = [comparison.whole["accuracy"].value, *(point.value for point in curve.points)]
        assert curve.area is not None
        assert curve.area.value == pytest.approx(np.trapezoid(values, shares) / shares[-1])
        assert curve.area.interval.low <= curve.area.value <= curve.area.interval.high


def test_random_is_a_band_over_seeds(done: tuple[Path, Comparison]) -> None:
    _, comparison = done
    random = comparison.methods[2]
    assert (random.label, random.drawn, random.seeds) == ("random", True, (0, 1, 2))
    drawn = np.random.default_rng(0).uniform(size=ALL_HEADS)
    np.testing.assert_allclose(random.scores, drawn)
    curve = comparison.of_scope("global")[2]
    assert any(point.lowest < point.highest for point in curve.points)
    for point in curve.points:
        assert point.lowest <= point.value <= point.highest
    lowest = sorted(range(ALL_HEADS), key=lambda place: drawn[place])[:3]
    assert curve.points[1].heads == {
        layer: tuple(sorted(place % 4 for place in lowest if place // 4 == layer))
        for layer in sorted({place // 4 for place in lowest})
    }


def test_what_scoring_took_is_counted(done: tuple[Path, Comparison]) -> None:
    _, comparison = done
    passes = {m.label: (m.forwards_per_sample, m.backwards_per_sample) for m in comparison.methods}
    # One pass reads the unmodified model, 3 steps learn; two clips take a pass and 2 steps more to
    # measure their memory.
    more = 2 / CALIBRATION_CLIPS
    assert passes == {
        "hib (steps 3)": (4 + 3 * more, 3 + 2 * more),
        "magnitude": (0, 0),
        "random": (0, 0),
    }
    assert comparison.methods[0].seconds > 0
    assert comparison.methods[0].split_half is not None
    assert comparison.methods[1].split_half is None


def test_occlusion_takes_a_pass_for_each_head(stand_in: StandIn) -> None:
    comparison = compared(stand_in, "--methods", "occlusion", "--fractions", "0.5")
    (occlusion,) = comparison.methods
    # Memory is measured on two clips, one head of which is silenced.
    more = 2 * 3 / CALIBRATION_CLIPS
    assert occlusion.forwards_per_sample == pytest.approx(2 + ALL_HEADS + more)
    assert occlusion.backwards_per_sample == 0


def test_rankings_are_correlated(done: tuple[Path, Comparison]) -> None:
    from scipy.stats import spearmanr

    _, comparison = done
    one, other = (comparison.methods[place].scores for place in (0, 1))
    matrix = np.array(comparison.rank_correlations)
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(spearmanr(one, other).statistic)
    np.testing.assert_allclose(np.diag(matrix), 1)


# The files -----------------------------------------------------------------------------------


def test_the_table_holds_what_the_json_holds(done: tuple[Path, Comparison]) -> None:
    output, comparison = done
    assert Comparison.model_validate_json((output / "compare.json").read_text()) == comparison
    with (output / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    points = [(curve, point) for curve in comparison.curves for point in curve.points]
    assert len(rows) == len(points) == 3 * (3 + 2)
    for row, (curve, point) in zip(rows, points, strict=True):
        assert (row["method"], row["scope"], row["metric"]) == (
            curve.label,
            curve.scope,
            "accuracy",
        )
        numbers = [float(row[name]) for name in ("fraction", "removed", "share", "value")]
        assert numbers == [point.fraction, point.removed, point.share, point.value]
        assert (float(row["low"]), float(row["high"])) == point.interval
        assert (float(row["lowest_draw"]), float(row["highest_draw"])) == (
            point.lowest,
            point.highest,
        )


def test_pictures_and_page_are_there(done: tuple[Path, Comparison]) -> None:
    output, _ = done
    page = (output / "compare.md").read_text()
    for scope in ("global", "layerwise"):
        assert (output / f"compare-{scope}.png").read_bytes().startswith(b"\x89PNG")
        root = xml.etree.ElementTree.parse(output / f"compare-{scope}.svg").getroot()
        assert root.tag.endswith("svg")
        assert f"](compare-{scope}.png)" in page
    for method in ("hib (steps 3)", "magnitude", "random"):
        assert f"| {method} |" in page
    # What a run lists of its directory stays true whatever is compared there later.
    assert not [name for name in Manifest.model_validate_json(
        (output / "manifest.json").read_text()).files if name.startswith("compare")]  # fmt: skip


def test_an_encoder_with_a_decoder_has_a_cheaper_curve(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    stand_in = stand_in_of("encoder_decoder")
    options = ("--methods", "magnitude", "--fractions", "0.5", "--points", "0.25")
    comparison = compared(stand_in, *options)
    assert comparison.metric == "token accuracy"
    assert {curve.metric for curve in comparison.curves} == {"token accuracy"}
    assert [(p.metric, [q.removed for q in p.points]) for p in comparison.points] == [
        ("WER", [2]),
        ("WER", [2]),
    ]
    assert set(comparison.whole) == {"token accuracy", "WER"}
    own = compared(stand_in, *options, "--metric", "WER")
    assert (own.metric, own.points) == ("WER", ())
    assert own.whole["WER"] == comparison.whole["WER"]


# Taken up ------------------------------------------------------------------------------------


def test_nothing_is_scored_or_evaluated_twice(
    again: StandIn, done: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(HeadInformationBottleneck, "attribute", fail)
    monkeypatch.setattr(hibprune.comparing.chain, "evaluate_silenced", fail)
    repeated = compared(again, *FEW)
    assert repeated.curves == done[1].curves
    # The run's own scores served the first time already: it had none to make but the others'.
    kept = {path.stem for path in (again.root / "out/steps").glob("attribute*.json")}
    assert len([name for name in kept if name.startswith("attribute-hib")]) == 0
    assert "attribute" in kept


def test_another_method_costs_only_itself(again: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    evaluate = hibprune.comparing.chain.evaluate_silenced

    def counted(*arguments: Any) -> Any:
        asked.append(len(arguments[5]))
        return evaluate(*arguments)

    monkeypatch.setattr(hibprune.comparing.chain, "evaluate_silenced", counted)
    monkeypatch.setattr(Magnitude, "attribute", None)
    result = compare(again, "--methods", "hib,magnitude,occlusion", *FEW[2:])
    assert result.exit_code == 0, result.output or result.exception
    assert 0 < sum(asked) <= 5, "at most a set for each of the new method's points"
    assert "occlusion" in result.stdout


@pytest.mark.parametrize(
    "moment",
    [pytest.param("attribute-magnitude-*.json", marks=pytest.mark.slow), "evaluate/*.json"],
)
def test_a_killed_comparison_goes_on(
    stand_ins: Callable[[str], Path], tmp_path: Path, moment: str
) -> None:
    output = tmp_path / "out"
    arguments = (
        "compare", str(stand_ins("speech_recognition") / "recipe.yaml"), "--output", str(output),
        "--methods", "hib:steps=40,magnitude,random", "--quiet",
    )  # fmt: skip
    kill_after(f"steps/{moment}", tmp_path / "said", *arguments)
    assert not (output / "compare.json").exists()
    # Half-written files begin with a dot.
    sets = len(list((output / "steps/evaluate").glob("[!.]*.json")))
    said = finish(tmp_path / "said", *arguments).splitlines()
    (scored,) = [line for line in said if "heads by hib" in line]
    assert "done" in scored.split()
    assert "(from an earlier run" in scored
    (evaluated,) = [line for line in said if line.startswith("evaluate")]
    assert sets == 0 or f", {sets} of them before" in evaluated
    assert (output / "compare.json").is_file()


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--methods", "hbi"), "--methods: unknown method 'hbi' (did you mean 'hib'?)"),
        (("--methods", ","), "--methods: nothing in it"),
        (("--methods", "hib:beta"),
         "--methods hib:beta: 'beta': give it as setting=value"),
        (("--methods", "hib:beta=2020-01-01"),
         "--methods hib:beta=2020-01-01: beta: should be a number, not '2020-01-01'"),
        (("--methods", "hib:beta=2020-99-99"),
         "--methods hib:beta=2020-99-99: '2020-99-99' is not a YAML value"),
        (("--methods", "hib:bata=1"),
         "--methods hib:bata=1: bata: unknown key (did you mean 'beta'?)"),
        (("--methods", "hib:beta=x"),
         "--methods hib:beta=x: beta: should be a number, not 'x'"),
        (("--methods", "hib,hib:steps=3"),
         "--methods: 'hib:steps=3' is the same as 'hib': leave one out"),
        (("--methods", "occlusion:stacks=[decoder.self]"),
         "--methods occlusion:stacks=[decoder.self]: stacks: only the encoder's heads can be "
         "removed: leave it out"),
        (("--fractions", "0.1,1.2"),
         "--fractions: 1.2 is not between 0 and 1: e.g. 0.1,0.2,0.3"),
        (("--fractions", "nan"), "--fractions: nan is not between 0 and 1: e.g. 0.1,0.2,0.3"),
        (("--fractions", "half"), "--fractions: 'half' is not a number: e.g. 0.1,0.2,0.3"),
        (("--fractions", "0.01"),
         "--fractions: all are less than one head (global): raise them"),
        (("--fractions", "0.9", "--set", "budget.min_heads_per_layer=1"),
         "--fractions 0.9, global: 7 heads to remove, but only 6 of 8 can go with "
         "min_heads_per_layer 1: lower --fractions"),
        (("--scope", "layerwise", "--set", "budget={heads: 1, min_heads_per_layer: 3}"),
         "--fractions 0.5 (its default), layerwise: 2 heads to remove from layer 0, which has 4 "
         "and keeps min_heads_per_layer 3: give --fractions"),
        (("--scope", "layer"), "--scope: unknown scope 'layer' (did you mean 'layerwise'?)"),
        (("--seeds", "0"), "--seeds: should be at least 1, not 0"),
        (("--seeds", "1000000000"), "--seeds: should be at most 1,000, not 1000000000"),
        (("--metric", "WER"),
         "--metric: 'WER' is not one of accuracy (keyword-spotting)"),
    ],
)  # fmt: skip
def test_bad_input_is_one_plain_line(
    stand_in: StandIn, options: tuple[str, ...], fault: str
) -> None:
    assert faults(compare(stand_in, *options)) == [fault]
    assert not (stand_in.root / "out").exists()


def test_points_that_nobody_asked_for_are_told_as_defaults(
    stand_in_of: Callable[[str], StandIn],
) -> None:
    """Of 8 heads, 4 in each of two layers."""
    stand_in = stand_in_of("encoder_decoder")
    few = ("--methods", "magnitude", "--fractions", "0.25", "--scope")
    many = (*few, "global", "--set", "budget={heads: 1, min_heads_per_layer: 3}")
    fault = "global: 4 heads to remove, but only 2 of 8 can go with min_heads_per_layer 3"
    assert faults(compare(stand_in, *many)) == [
        f"--points 0.5 (its default), {fault}: give --points"
    ]
    assert faults(compare(stand_in, *many, "--points", "0.25,0.6")) == [
        f"--points 0.6, {fault}: lower --points"
    ]
    assert not (stand_in.root / "out").exists()
    said = compare(stand_in, *few, "layerwise").stdout.splitlines()
    assert "layerwise: --points 0.1 (its default) is less than one head: left out" in said


def test_fractions_of_layers_of_one_head_are_not_to_be_raised(stand_in: StandIn) -> None:
    config = stand_in.model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 1}))
    few = ("--methods", "magnitude", "--fractions", "0.25,0.99", "--scope", "layerwise")
    assert faults(compare(stand_in, *few, "--set", "budget={heads: 1}")) == [
        "--fractions: all are less than one head (layerwise): take another --scope or a model with "
        "more heads"
    ]
    told = invoke("check", stand_in.recipe, "--set", "budget.scope=layerwise").stderr
    assert told.endswith(
        " is less than one, as any of layers of 1 head is: set budget.scope to global or give "
        "heads: 1\n"
    )


def unfit(self: Magnitude, family: Family) -> str | None:
    return "its weights are secret" if family.model_type == "wav2vec2" else None


def test_a_method_that_cannot_serve_the_family(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hibprune.attribution import METHODS

    monkeypatch.setattr(Magnitude, "family_fault", unfit)
    able = ", ".join(name for name in (m.name() for m in METHODS) if name != "magnitude")
    assert faults(compare(stand_in, "--methods", "hib,magnitude")) == [
        "--methods: magnitude cannot score model type 'wav2vec2': its weights are secret: "
        f"use {able}"
    ]
    assert not (stand_in.root / "out").exists()


def test_among_all_methods_it_is_left_out_and_said(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hibprune.comparing.request

    monkeypatch.setattr(Magnitude, "family_fault", unfit)
    some = tuple(
        method
        for method in hibprune.comparing.request.METHODS
        if method.name() in ("hib", "magnitude", "random")
    )
    monkeypatch.setattr(hibprune.comparing.request, "METHODS", some)
    result = compare(stand_in, "--fractions", "0.5", "--scope", "global")
    assert result.exit_code == 0, result.output or result.exception
    assert "magnitude: left out: its weights are secret" in result.stdout.splitlines()
    written = json.loads((stand_in.root / "out/compare.json").read_text())
    assert [method["method"] for method in written["methods"]] == ["hib", "random"]
    assert (written["calibration"]["n"], written["validation"]["n"]) == (
        CALIBRATION_CLIPS,
        VALIDATION_CLIPS,
    )
