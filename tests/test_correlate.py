"""`hibprune correlate`: two finished runs, their heads' scores against each other."""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import faults, invoke, let_it_have_found
from scipy.stats import pearsonr, spearmanr

from hibprune.records.comparison import Correlation


def scores_of(directory: Path) -> dict[tuple[int, int], float]:
    """Mean scores by (layer, head), read without the code under test."""
    result = json.loads((directory / "steps/attribute.json").read_text())["result"]
    means = np.mean(result["per_sample"], axis=0)
    return {
        (head["layer"], head["index"]): float(mean)
        for head, mean in zip(result["heads"], means, strict=True)
    }


def change(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    let_it_have_found(directory / "steps/attribute.json", edit)


@pytest.fixture
def runs(finished: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """Copies of a finished keyword spotter and a finished recogniser."""
    return tuple(  # type: ignore[return-value]
        Path(shutil.copytree(finished(name), tmp_path / name))
        for name in ("keyword_spotting", "speech_recognition")
    )


@pytest.mark.draws
def test_two_tasks(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = invoke("correlate", *runs, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output or result.exception
    correlation = Correlation.model_validate_json((tmp_path / "out/correlate.json").read_text())
    first, second = (list(scores_of(run).values()) for run in runs)
    assert correlation.first.scores == pytest.approx(first)
    assert correlation.second.scores == pytest.approx(second)
    assert correlation.spearman.value == pytest.approx(spearmanr(first, second).statistic)
    assert correlation.pearson.value == pytest.approx(pearsonr(first, second).statistic)
    for estimate in (correlation.spearman, correlation.pearson):
        assert -1 <= estimate.interval.low < estimate.value < estimate.interval.high <= 1
    assert correlation.layers == {
        layer: pytest.approx(spearmanr(first[start : start + 4], second[start : start + 4])[0])
        for layer, start in ((0, 0), (1, 4))
    }
    assert (correlation.first.task, correlation.second.task) == ("keyword-spotting", "asr-ctc")
    (line,) = result.stdout.splitlines()
    assert line.startswith(
        f"recipe, hib and recipe, hib: Spearman {correlation.spearman.value:.2f} ("
    )
    assert line.endswith("over 8 heads")
    assert (tmp_path / "out/correlate.png").read_bytes().startswith(b"\x89PNG")
    root = xml.etree.ElementTree.parse(tmp_path / "out/correlate.svg").getroot()
    assert root.tag.endswith("svg")


def test_a_run_agrees_with_itself(runs: tuple[Path, Path], tmp_path: Path) -> None:
    result = invoke("correlate", runs[0], runs[0], "--output", tmp_path / "out", "--json")
    correlation = Correlation.model_validate_json(result.stdout)
    assert correlation.spearman.value == pytest.approx(1)
    assert correlation.pearson.interval == pytest.approx((1, 1))


def test_heads_that_one_run_no_longer_has_stay_out(runs: tuple[Path, Path], tmp_path: Path) -> None:
    def without_the_second_head(record: dict[str, Any]) -> None:
        result = record["result"]
        del result["heads"][1]
        for row in result["per_sample"]:
            del row[1]

    change(runs[1], without_the_second_head)
    result = invoke("correlate", *runs, "--output", tmp_path / "out", "--json")
    correlation = Correlation.model_validate_json(result.stdout)
    assert len(correlation.heads) == 7
    ours, theirs = scores_of(runs[0]), scores_of(runs[1])
    common = [ours[place] for place in theirs]
    expected = spearmanr(common, list(theirs.values())).statistic
    assert correlation.spearman.value == pytest.approx(expected)


def test_a_run_of_several_rounds_is_one_too(
    runs: tuple[Path, Path], stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    """Its scores are those of the first round, and its scoring took the time of all."""
    rounds = tmp_path / "rounds"
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    result = invoke("run", recipe, "--output", rounds, "--set", "schedule.rounds=2", "--quiet")
    assert result.exit_code == 0, result.output
    result = invoke("correlate", runs[0], rounds, "--output", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    correlation = Correlation.model_validate_json(result.stdout)
    assert correlation.spearman.value == pytest.approx(1)


def draw(*scores: float) -> Callable[[dict[str, Any]], object]:
    return lambda record: record["result"].update(method="random", per_sample=[list(scores)])


@pytest.mark.parametrize("order", [1, -1], ids=["one seed", "two seeds"])
def test_scores_that_are_drawn_are_said_to_say_nothing(
    order: int, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    scores = [0.3, 0.7, 0.1, 0.9, 0.4, 0.6, 0.2, 0.8]
    change(runs[0], draw(*scores))
    change(runs[1], draw(*scores[::order]))
    result = invoke("correlate", *runs, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output or result.exception
    outcome, remark = result.stdout.splitlines()
    found = "draws of one seed" if order == 1 else "drawn"
    assert outcome.startswith("recipe, random and recipe, random: Spearman ")
    assert remark == f"recipe, random: these scores are {found} and say nothing about heads"


def test_a_draw_beside_a_ranking_is_told_of_alone(runs: tuple[Path, Path], tmp_path: Path) -> None:
    change(runs[1], draw(0.3, 0.7, 0.1, 0.9, 0.4, 0.6, 0.2, 0.8))
    result = invoke("correlate", *runs, "--output", tmp_path / "out")
    assert result.stdout.splitlines()[1:] == [
        "recipe, random: these scores are drawn and say nothing about heads"
    ]


def lose_the_manifest(run: Path) -> None:
    (run / "manifest.json").unlink()


def spoil_the_manifest(run: Path) -> None:
    (run / "manifest.json").write_text("{}")


def lose_the_scores(run: Path) -> None:
    (run / "steps/attribute.json").unlink()


def begin_again(run: Path) -> None:
    change(run, lambda record: record.update(seconds=record["seconds"] + 1))


def widen(run: Path) -> None:
    def more_heads(record: dict[str, Any]) -> None:
        for head in record["result"]["heads"]:
            head["index"] *= 3

    change(run, more_heads)


def edit_the_scores(run: Path) -> None:
    path = run / "steps/attribute.json"
    record = json.loads(path.read_text())
    record["result"]["per_sample"][0][0] += 1
    path.write_text(json.dumps(record))


NO_SCORES: tuple[dict[str, Any], ...] = (
    {"per_sample": [[1.0], [1.0, 2.0]]},
    {"per_sample": []},
    {"per_sample": [[1e300] * 8]},
    {"per_sample": [[1.0] * 9]},
    {"heads": [], "per_sample": [[]]},
    {"heads": [{"layer": 10**30, "index": 0}], "per_sample": [[1.0]]},
    {"heads": [{"layer": -1, "index": 0}], "per_sample": [[1.0]]},
    {"heads": [{"layer": 0, "index": 0}] * 8},
    {"method": "$x$"},
)


def scores(**values: Any) -> Callable[[Path], None]:
    return lambda run: change(run, lambda record: record["result"].update(values))


def named(name: str) -> Callable[[Path], None]:
    def name_the_recipe(run: Path) -> None:
        path = run / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": name}))

    return name_the_recipe


def a_pipe(run: Path) -> None:
    (run / "manifest.json").unlink()
    os.mkfifo(run / "manifest.json")


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (shutil.rmtree, "B: no finished hibprune run: no manifest.json that can be read in it"),
        (lose_the_manifest, "B: no finished hibprune run: no manifest.json that can be read in it"),
        (spoil_the_manifest, "B/manifest.json: not of a run by this version of hibprune: "
                             "run it again"),
        (lose_the_scores, "B: its scores (steps/attribute.json) are gone: run it again"),
        (begin_again, "B: its scores are of a later run that did not finish: run it to the end"),
        (widen, "A has wav2vec2, 2 layers of up to 4 heads, B wav2vec2, 2 layers of up to 10 "
                "heads: give runs of one architecture"),
        (edit_the_scores, "B: its scores (steps/attribute.json) were changed: run it again"),
        *[(scores(**values), "B: steps/attribute.json holds no scores that a method of hibprune "
                             "gives: run it again") for values in NO_SCORES],
        (named("$\\frac{$"), "B/manifest.json: '$\\frac{$' is no name of a recipe"),
        (named("a" * 5000), f"B/manifest.json: '{'a' * 79}…' is no name of a recipe"),
        (a_pipe, "B: no finished hibprune run: no manifest.json that can be read in it"),
    ],
)  # fmt: skip
def test_what_cannot_be_correlated_is_said_in_a_line(
    runs: tuple[Path, Path], tmp_path: Path, spoil: Callable[[Path], object], fault: str
) -> None:
    spoil(runs[1])
    (told,) = faults(invoke("correlate", *runs, "--output", tmp_path / "out"))
    assert told.replace(str(runs[0]), "A").replace(str(runs[1]), "B") == fault
    assert not (tmp_path / "out").exists()


def test_it_writes_into_no_directory_of_anothers(runs: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    assert faults(invoke("correlate", *runs, "--output", other)) == [
        f"{other}: holds something that is not a hibprune run: choose another --output or empty it"
    ]
