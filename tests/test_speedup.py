"""A model as fast as asked, on a machine whose times are known: they follow from the files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
from commands import faults, invoke, refused, run, words_of_steps
from pydantic import ValidationError
from standin import StandIn, lower_ranks, quick_keyword_spotting
from test_attention_mask import suited
from tiny_models import PLANS

from hibprune.compression.plan import Budget
from hibprune.compression.rank_mixture import Mix
from hibprune.execution import machine
from hibprune.records.frontier import Frontier
from hibprune.records.latency_table import ProjectionTimes, RankTimes
from hibprune.records.manifest import Manifest
from hibprune.records.speedup import SpeedTry
from hibprune.records.units import Unit
from hibprune.stages import latency_table, speedup
from hibprune.stages.projection_times import time_projections
from hibprune.stages.run import Run

ASKED = 1.3


def by_size(run: Run, places: Mapping[str, Path]) -> dict[str, tuple[float, ...]]:
    """A machine to which every byte of a graph is work."""
    times = {name: milliseconds(place) for name, place in places.items()}
    return {name: (one,) * run.recipe.benchmark.repetitions for name, one in times.items()}


def milliseconds(place: Path) -> float:
    return 5 + (place / "onnx" / "model.onnx").stat().st_size / 1e4


def projections_by_size(
    run: Run, mixes: Sequence[Collection[Unit]], whole: Path, scratch: Path
) -> RankTimes:
    """Projections, really exported and run, on the same machine: 4 bytes a weight, 750 a node."""
    found = time_projections(run, mixes, whole, scratch)
    rounds = run.recipe.benchmark.repetitions
    assert all(len(one.times) == rounds and min(one.times) > 0 for one in found.projections)

    def known(one: ProjectionTimes) -> ProjectionTimes:
        size = 750 + 4 * one.rows * one.columns
        if one.rank is not None:
            size = 1500 + 4 * one.rank * (one.rows + one.columns)
        return one.model_copy(update={"times": (0.001 + size / 1e4,) * rounds})

    return RankTimes(
        whole=(milliseconds(whole),) * rounds, projections=tuple(map(known, found.projections))
    )


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "time_projections", projections_by_size)
    monkeypatch.setattr(latency_table, "time_together", by_size)
    monkeypatch.setattr(speedup, "time_together", by_size)


def prepared(root: Path) -> StandIn:
    return quick_keyword_spotting(root, {"speedup": ASKED})


def test_the_speed_that_was_asked_for_is_come_to_and_taken_up(tmp_path: Path) -> None:
    stand_in, out = prepared(tmp_path / "own"), tmp_path / "out"
    result = run(stand_in, "--set", "benchmark.rivals=false", output=out)
    assert result.exit_code == 0, result.output or result.exception
    found = Manifest.model_validate_json((out / "manifest.json").read_text())
    whole = 5 + found.original.size_bytes / 1e4
    assert ASKED <= whole / milliseconds(out) <= 1.05 * ASKED
    assert found.budget is not None
    assert found.budget.speed is not None
    assert found.budget.speed.chosen.measured == pytest.approx(whole / milliseconds(out), rel=0.01)
    # What the table foretells is near: sizes are sums but for products of channels.
    first = found.budget.speed.tries[0]
    assert first.foretold == pytest.approx(first.measured, rel=0.1)
    assert first.foretold == pytest.approx(1.015 * ASKED, rel=0.02)
    report = (out / "report.md").read_text()
    assert f"The budget leaves a model {ASKED:g} times as fast at" in report
    assert f"{first.measured:.2f} measured" in report

    again = run(stand_in, "--set", "benchmark.rivals=false", "--quiet", output=out)
    said = words_of_steps(again.stdout)
    assert said["latency-table"] == said["speedup"] == said["plan"] == "done"


def test_what_no_removal_reaches_is_a_plain_line_and_a_strange_table_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in, out = prepared(tmp_path / "own"), tmp_path / "out"
    (line,) = faults(run(stand_in, "--set", "budget.speedup=50", output=out))
    assert line.startswith("budget.speedup: 50 cannot be reached: pruned is ")
    assert line.endswith(
        "times as fast as the original at 0.5 s when all heads, neurons, channels and ranks are "
        "gone that may go: lower it to less than that"
    )
    assert not (out / "manifest.json").exists()
    here = machine.describe_machine()
    other = here.model_copy(update={"processor": "another"})
    monkeypatch.setattr(latency_table, "describe_machine", lambda: other)
    moved = run(stand_in, "--set", "budget.speedup=50", "--quiet", output=out)
    assert "the latency table that is there is of another machine: measured anew" in moved.output
    assert words_of_steps(moved.stdout)["latency-table"] != "done"

    fp16 = ("--set", "gates.variant=pruned-fp16", "--set", "export.variants=[fp32, fp16]")
    (line,) = refused(stand_in, *fp16)
    assert line.startswith("budget.speedup: the speed of pruned-fp16 is not known")


def test_check_says_what_would_go(tmp_path: Path) -> None:
    said = invoke("check", prepared(tmp_path / "own").recipe)
    assert (
        "would remove heads, neurons, channels and ranks until pruned is 1.3 times as fast at 0.5 s"
        in said.stdout
    )


@pytest.mark.parametrize("value", [1, 0.5, float("inf"), float("nan")])
def test_no_speed(value: float) -> None:
    with pytest.raises(ValidationError, match=r"greater than 1|finite"):
        Budget(speedup=value)


def test_a_frontier_goes_along_speeds_with_one_table(tmp_path: Path) -> None:
    stand_in, out = prepared(tmp_path / "own"), tmp_path / "frontier"
    options = ("--set", "benchmark.rivals=false", "--output", out)
    result = invoke("frontier", stand_in.recipe, "--targets", "speedup=1.3,1.15", *options)
    assert result.exit_code == 0, result.output or result.exception
    found = Frontier.model_validate_json((out / "frontier.json").read_text())
    assert [one.label for one in found.points] == ["speedup-1.15", "speedup-1.3"]
    assert words_of_steps(result.stdout.partition("speedup-1.3:")[2])["latency-table"] == "done"
    assert "| speed asked | variant |" in (out / "frontier.md").read_text()
    assert "1.15×" in (out / "frontier.md").read_text()
    for targets, fault in (
        ("speedup=1", "greater than 1"),
        ("speedup=inf", "--targets: inf: give it as speedup=1.25,1.5,2"),
        ("metric_drop=2", "--targets: 2 is not between 0 and 1"),
    ):
        refused_targets = invoke(
            "frontier", stand_in.recipe, "--targets", targets, "--output", tmp_path / "none"
        )
        (line,) = faults(refused_targets)
        assert fault in line


def tried(measured: float) -> speedup.Try:
    return Mix((), {}), SpeedTry(removed={}, foretold=2.0, measured=measured)


@pytest.mark.parametrize(
    ("without", "with_ranks", "taken"),
    [
        ([1.9, 2.04], [], 2.04),
        # Slower than asked counts double.
        ([1.97, 2.05], [], 2.05),
        ([], [1.97, 2.2], 1.97),
        # The nearest is too slow, and another one is not.
        ([1.9, 2.04], [1.99, 2.05, 2.1], 2.05),
        ([2.04], [1.999], 2.04),
        ([2.04], [2.3], 2.04),
        # No slower than what units alone came to is fast enough.
        ([1.96], [1.97], 1.97),
        ([1.96], [1.95], 1.96),
    ],
)
def test_ranks_are_taken_if_they_are_as_fast(
    without: list[float], with_ranks: list[float], taken: float
) -> None:
    best = speedup.nearest(2.0, list(map(tried, without)))
    found = speedup.nearest(2.0, list(map(tried, with_ranks)), best)
    assert found is not None
    assert found[1].measured == taken


FREE = 1.12
"""A speed that ranks alone come to."""


@pytest.fixture(scope="module")
def thinner(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A model whose projections are of rank 4: ranks are free, and save bytes, so time here."""
    root = tmp_path_factory.mktemp("thinner") / "keywords"
    stand_in = quick_keyword_spotting(root, {"speedup": FREE})
    lower_ranks(stand_in)
    return stand_in


def test_ranks_that_are_free_and_fast_are_taken_instead_of_units(
    thinner: StandIn, tmp_path: Path
) -> None:
    out, options = tmp_path / "out", ("--set", "benchmark.rivals=false", "--quiet")
    result = run(thinner, *options, output=out)
    assert result.exit_code == 0, result.output or result.exception
    found = Manifest.model_validate_json((out / "manifest.json").read_text())
    assert found.budget is not None
    assert found.budget.speed is not None
    assert found.ranks is not None
    units, with_ranks = found.budget.speed.tries[0], found.budget.speed.chosen
    # Units alone were tried first, and were as fast.
    assert units.factored == 0
    assert sum(units.removed.values()) > sum(with_ranks.removed.values())
    assert with_ranks.factored == len(found.ranks.factored) > 0
    assert FREE <= with_ranks.measured <= FREE * 1.05
    whole = 5 + found.original.size_bytes / 1e4
    assert with_ranks.measured == pytest.approx(whole / milliseconds(out), rel=0.01)
    assert found.variant("pruned").metric == found.original.metric
    assert "Taken was a mix with such projections" in (out / "report.md").read_text()

    said = words_of_steps(run(thinner, *options, output=out).stdout)
    assert said["latency-table"] == said["speedup"] == said["plan"] == said["repair"] == "done"
    faults(run(thinner, "--set", "budget={speedup: 50, kinds: [head]}", output=out))
    anew = run(thinner, "--set", "budget={speedup: 9, kinds: [rank]}", output=out)
    assert "the latency table that is there knows no ranks: measured anew" in anew.output
    (line,) = faults(anew)
    assert line.startswith("budget.speedup: 9 cannot be reached: pruned is 1.")
    assert line.endswith("when all ranks are gone that may go: lower it to less than that")


def test_a_model_that_came_with_a_layer_without_heads_is_timed_as_its_graphs_will_be(
    tmp_path: Path,
) -> None:
    stand_in = quick_keyword_spotting(tmp_path / "own", {"speedup": 9, "kinds": ["rank"]})
    config = json.loads((stand_in.model / "config.json").read_text())
    model = suited("wav2vec2").build()
    model.config.id2label, model.config.label2id = config["id2label"], config["label2id"]
    model.prune_heads(PLANS["first emptied"])
    model.save_pretrained(stand_in.model)
    masks: tuple[str, ...]
    for masks in (), ("--set", "export.attention_mask=true"):
        result = run(stand_in, *masks, "--quiet", output=tmp_path / "out")
        (line,) = faults(result)
        assert line.startswith("budget.speedup: 9 cannot be reached: pruned is 1.")
        # Times of graphs without masks are no times of those with them.
        assert words_of_steps(result.stdout)["latency-table"] != "done"
