"""Scores that say nothing about which heads matter are called so, and not drawn as if they did."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import invoke
from matplotlib.image import imread
from safetensors.torch import load_file, save_file
from standin import ALL_HEADS, StandIn

from hibprune.records.comparison import Comparison, Correlation
from hibprune.records.manifest import Manifest
from hibprune.records.ranking import RankingFault, chance_agreement, scores_equal
from hibprune.records.statistics import split_half_correlation
from hibprune.records.units import Head, Plan, Scores
from hibprune.report.figures import head_map, score_spread
from hibprune.report.spread import score_limits, wide_enough

LAYERS, HEADS = 6, 6
SAYS_NOTHING = "he ranking of heads says nothing"
PURPLE, YELLOW = (68, 1, 84), (253, 231, 37)
"""The ends of the colours of the pictures."""


def scores_of(rows: np.ndarray) -> Scores:
    places = [Head(layer, index) for layer in range(LAYERS) for index in range(HEADS)]
    return Scores(
        method="hib",
        heads=tuple(places[: rows.shape[1]]),
        samples=tuple(map(str, range(len(rows)))),
        per_sample=tuple(tuple(map(float, row)) for row in rows),
    )


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(samples, LAYERS * HEADS))


RISING = np.linspace(0, 3, LAYERS * HEADS)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        # The same differences for every sample: perfect agreement on what is rounding.
        (0.69 * (1 + 1e-7 * noise(1)) + np.zeros((20, 1)), "equal"),
        (1e9 * (1 + 1e-8 * noise(20)), "equal"),
        (np.zeros((20, 36)), "equal"),
        (np.full((1, 36), 2.5), "equal"),
        (noise(200), "unstable"),
        (5 + noise(20, 1), "unstable"),
        # Too few samples to halve them.
        (noise(3, 2), "noise"),
        (RISING + noise(200), None),
        (RISING + noise(3), None),
        (np.float64(0.69) * (1 + 1e-4 * RISING) + np.zeros((20, 1)), None),
        # A single row has no noise that it could be told from.
        (noise(1), None),
        (np.ones((5, 1)), None),
    ],
)
def test_rankings_that_say_nothing(rows: np.ndarray, fault: RankingFault | None) -> None:
    assert scores_of(rows).ranking_fault == fault


@pytest.mark.parametrize("heads", [8, 36])
@pytest.mark.parametrize("samples", [8, 60])
def test_noise_hardly_ever_agrees_more_than_it_may(heads: int, samples: int) -> None:
    generator = np.random.default_rng(heads + samples)
    agreement = [
        split_half_correlation(generator.normal(size=(samples, heads)).tolist()) for _ in range(60)
    ]
    limit = chance_agreement(heads)
    # 5 % of 60 are 3.
    assert sum(one is not None and one >= limit for one in agreement) <= 7
    assert limit > 0.1


def test_many_heads_have_to_agree_all_the_same() -> None:
    assert chance_agreement(1000) == 0.1
    assert chance_agreement(1) == 1


def test_faults_are_found_about_as_often_as_there_is_nothing() -> None:
    found = [scores_of(noise(40, seed)).ranking_fault for seed in range(40)]
    assert sum(fault is None for fault in found) <= 5


# Pictures ------------------------------------------------------------------------------------


def plan_of(scores: Scores) -> Plan:
    ranked = sorted(scores.heads, key=lambda head: (scores.values[head], head))
    return Plan(removed=tuple(sorted(ranked[:18])), kept=tuple(sorted(ranked[18:])))


def pixels_like(path: Path, colour: tuple[int, int, int]) -> int:
    """In the upper part, where the heads are and the scale of colours is not."""
    image = (255 * imread(path)[..., :3]).round().astype(int)
    upper = image[: int(0.7 * len(image))]
    return int((np.abs(upper - colour).sum(axis=-1) <= 12).sum())


@pytest.mark.parametrize(
    ("rows", "contrast"),
    [
        (RISING + noise(200), True),
        (0.69 * (1 + 1e-7 * noise(1)) + np.zeros((20, 1)), False),
        (noise(200), False),
        (np.zeros((20, 36)), False),
    ],
)
@pytest.mark.draws
def test_colours_are_for_differences_that_mean_something(
    tmp_path: Path, rows: np.ndarray, contrast: bool
) -> None:
    scores = scores_of(rows)
    head_map(scores, plan_of(scores), tmp_path / "heads.png")
    score_spread(scores, plan_of(scores), tmp_path / "spread.png")
    for colour in (PURPLE, YELLOW):
        assert (pixels_like(tmp_path / "heads.png", colour) > 500) == contrast
    # A warning makes the picture higher.
    height = len(imread(tmp_path / "heads.png"))
    good = scores_of(RISING + noise(200))
    head_map(good, plan_of(good), tmp_path / "good.png")
    assert (height > len(imread(tmp_path / "good.png"))) != contrast


def test_limits_span_what_the_scores_can_tell() -> None:
    good = RISING + noise(200)
    assert score_limits(scores_of(good)) == (good.mean(axis=0).min(), good.mean(axis=0).max())
    nothing = noise(200)
    assert score_limits(scores_of(nothing)) == (nothing.min(), nothing.max())
    low, high = score_limits(scores_of(0.69 * (1 + 1e-7 * noise(20))))
    assert (low, high) == pytest.approx((0.345, 1.035), rel=1e-4)
    assert wide_enough(0, 0) == (-0.5, 0.5)
    assert wide_enough(-2, -2) == (-3, -1)
    assert wide_enough(1, 1.001) == (1, 1.001)


# The commands --------------------------------------------------------------------------------


def flatten(stand_in: StandIn) -> None:
    """Make the weights of all heads the same, so that their norms are."""
    path = stand_in.model / "model.safetensors"
    weights = load_file(path)
    for name, weight in weights.items():
        if ".attention." in name and name.endswith("_proj.weight"):
            weights[name] = weight * 0 + 0.01
    save_file(weights, path, metadata={"format": "pt"})


@pytest.fixture
def flat(stand_in: StandIn) -> StandIn:
    flatten(stand_in)
    content = stand_in.content()
    content["attribution"] = {"method": "magnitude"}
    stand_in.write(content)
    return stand_in


def test_it_is_said_wherever_a_ranking_is_spoken_of(
    flat: StandIn, finished: Callable[[str], Path], tmp_path: Path
) -> None:
    result = invoke("run", flat.recipe, "--output", tmp_path / "flat")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (attributed,) = [line for line in lines if line.startswith("attribute ")]
    assert attributed.endswith(f": t{SAYS_NOTHING}")
    manifest = Manifest.model_validate_json((tmp_path / "flat/manifest.json").read_text())
    assert manifest.attribution.ranking_fault == "equal"
    assert manifest.rounds[0].ranking_fault == "equal"
    told = f"T{SAYS_NOTHING}: all scores are equal but for rounding. Which heads went is chance."
    assert told in " ".join(result.stdout.split())
    for page in ("report.md", "README.md"):
        assert told in (tmp_path / "flat" / page).read_text()

    result = invoke(
        "correlate", finished("keyword_spotting"), tmp_path / "flat", "--output", tmp_path / "c"
    )
    assert result.exit_code == 0, result.output
    _, said = result.stdout.splitlines()
    assert said == f"recipe, magnitude: t{SAYS_NOTHING}: all scores are equal but for rounding"
    correlation = Correlation.model_validate_json((tmp_path / "c/correlate.json").read_text())
    assert correlation.first.ranking_fault is None
    assert correlation.second.ranking_fault == "equal"
    assert scores_equal(correlation.second.scores)
    # There is no correlation with a constant, so that any could be the true one.
    for estimate in (correlation.spearman, correlation.pearson):
        assert (estimate.value, estimate.interval) == (0, (-1, 1))
    assert correlation.layers == {}
    assert (tmp_path / "c/correlate.png").is_file()


def test_rounds_that_say_nothing_are_named(flat: StandIn, tmp_path: Path) -> None:
    # Repaired weights would differ, and so would their norms in the second round.
    options = ("--set", "schedule.rounds=2", "--set", "removal.repair=none")
    result = invoke("run", flat.recipe, "--output", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    told = (
        f"T{SAYS_NOTHING} in round 1 (all scores are equal but for rounding) and "
        "2 (all scores are equal but for rounding). Which heads went is chance."
    )
    assert told in (tmp_path / "out/report.md").read_text().replace("\\", "")


def test_a_comparison_says_which_methods_say_nothing(flat: StandIn, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = ("--methods", "magnitude,random", "--fractions", "0.5", "--output", output)
    result = invoke("compare", flat.recipe, *options)
    assert result.exit_code == 0, result.output
    told = f"magnitude: t{SAYS_NOTHING}: all scores are equal but for rounding."
    assert told in result.stdout.splitlines()
    assert told in (output / "compare.md").read_text()
    comparison = Comparison.model_validate(json.loads((output / "compare.json").read_text()))
    assert [method.ranking_fault for method in comparison.methods] == ["equal", None]
    assert len(comparison.methods[0].scores) == ALL_HEADS
    for scope in comparison.scopes:
        xml.etree.ElementTree.parse(output / f"compare-{scope}.svg")
