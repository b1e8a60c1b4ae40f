"""The tables of the study stand in the documents as the stored rows give them."""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path

import pytest

from hibprune.records.frontier import Frontier
from hibprune.report.frontier import frontier_markdown

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "tests/benchmarks/results").glob("study_*.json"))
sys.path.insert(0, str(ROOT / "tests/benchmarks"))

from base_shape import speed_table  # noqa: E402
from ctc_budgets import budgets_table  # noqa: E402
from gpu import speed_table as gpu_speed_table  # noqa: E402
from recovery import recovery_table  # noqa: E402
from repair_study import tables, without  # noqa: E402
from whisper_budgets import ROWS, variants_table  # noqa: E402
from whisper_heads import repaired_table  # noqa: E402


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_its_tables_are_those_of_the_stored_rows(path: Path) -> None:
    report = json.loads(path.read_text())
    text = (ROOT / "hibprune/attribution/README.md").read_text()
    assert report["command"] in text
    for table in tables(report):
        assert table in text


def test_a_cell_is_the_median_of_the_draws_and_its_range() -> None:
    (path, *_) = RESULTS
    report = json.loads(path.read_text())
    row = next(row for row in report["rows"] if row["ranking"] == "random")
    values = row["values"][0]
    assert len(values) == 3
    middle = sorted(values)[1]
    assert middle == statistics.median(values)
    cell = f"| {middle:.1%} ({min(values):.1%}–{max(values):.1%}) |".replace("%", "")
    assert cell in "".join(tables(report))


def test_a_place_on_one_machine_is_not_part_of_the_command() -> None:
    assert without(["a", "--work", "/x", "b"], "--work") == ["a", "b"]
    assert without(["a", "b"], "--work") == ["a", "b"]


@pytest.mark.parametrize("heads", ["", "many_heads_"])
def test_whispers_tables_with_repair_are_those_of_the_stored_rows(heads: str) -> None:
    results = ROOT / "tests/benchmarks/results"
    reports = [
        json.loads((results / f"whisper_table_{heads}{name}least_squares.json").read_text())
        for name in ("", "hib_")
    ]
    text = (ROOT / "hibprune/attribution/README.md").read_text()
    for report in reports:
        assert report["command"] in text
        (whole,) = [row for row in report["rows"] if row["ranking"] == "none removed"]
        assert f"unpruned {100 * whole['wer']:.1f} (" in text
    assert repaired_table([row for report in reports for row in report["rows"]]) in text
    if not heads:
        seconds = [row["scoring_seconds"] for row in reports[1]["rows"] if "heads" in row]
        assert f"{min(seconds):.0f} to {max(seconds):.0f} s on 24 clips" in text


def test_what_is_said_of_nine_heads_and_twice_the_clips_is_in_the_stored_rows() -> None:
    stored = ROOT / "tests/benchmarks/results/whisper_table_twice_the_clips_least_squares.json"
    report = json.loads(stored.read_text())
    text = (ROOT / "hibprune/attribution/README.md").read_text()
    assert report["command"] in text
    whole, *rows = report["rows"]
    rises = [100 * (row["wer"] - whole["wer"]) for row in rows]
    assert rises == pytest.approx([1.5] * 3, abs=0.05)
    seconds = [row["repair_seconds"] for row in rows]
    assert f"{min(seconds):.0f} to {max(seconds):.0f} s on a busy machine" in text


def test_the_frontier_along_speeds_is_that_of_the_stored_one() -> None:
    stored = (ROOT / "tests/benchmarks/results/frontier_quickstart.json").read_text()
    found, text = (
        Frontier.model_validate_json(stored),
        (ROOT / "tests/benchmarks/README.md").read_text(),
    )
    assert found.command in text
    (table,) = [
        part for part in frontier_markdown(found).split("\n\n") if part.startswith("| speed asked")
    ]
    assert table in text
    for point in found.points:
        assert point.budget.speed is not None
        first = point.budget.speed.tries[0]
        assert re.search(rf"{first.foretold:.2f} for {first.measured:.2f}", text)


def test_the_table_of_recovery_is_that_of_the_stored_rows() -> None:
    report = json.loads((ROOT / "tests/benchmarks/results/recovery_quickstart.json").read_text())
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert report["command"] in text
    assert recovery_table(report) in text
    for row in report["rows"]:
        assert row["parameters"] == report["rows"][0]["parameters"]
    assert f"{report['rows'][0]['parameters'] / 1e6:.2f} M parameters" in text
    recovered = report["rows"][-1]["recovery"]
    assert f"of {recovered['clips']} clips" in text


def test_the_table_of_large_budgets_is_that_of_the_stored_rows() -> None:
    report = json.loads((ROOT / "tests/benchmarks/results/ctc_budgets.json").read_text())
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert report["command"] in text
    assert "\n".join(budgets_table(report["rows"])) in text
    (whole,) = {row["unpruned"]["value"] for row in report["rows"]}
    assert f"WER {100 * whole:.1f} % unpruned" in text


def test_the_table_of_the_base_shape_is_that_of_the_stored_run() -> None:
    report = json.loads((ROOT / "tests/benchmarks/results/base_shape.json").read_text())
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert speed_table(report) in text
    steps = report["step_seconds"]
    assert (
        sum(steps[name] for name in steps if name.startswith(("attribute", "plan", "repair"))) < 540
    )


def test_the_table_of_whispers_recovery_is_that_of_the_stored_row() -> None:
    report = json.loads((ROOT / "tests/benchmarks/results/whisper_recovery.json").read_text())
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert "\n".join(budgets_table(report["rows"])) in text
    (row,) = report["rows"]
    assert f"unpruned {100 * row['unpruned']['value']:.1f} %" in text
    assert row["faults"] == {"empty": 0, "looping": 0}
    assert min(one["held_out"] for one in row["curve"]) == pytest.approx(0.3405, abs=5e-5)


def test_the_table_of_whispers_budgets_is_that_of_the_stored_rows() -> None:
    report = json.loads((ROOT / "tests/benchmarks/results/whisper_budgets.json").read_text())
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert "\n".join(variants_table(report["rows"])) in text
    rows = {one["row"]: one for one in report["rows"]}
    assert {name: tuple(one["settings"]) for name, one in rows.items()} == ROWS
    tries = rows["speedup 1.3"]["tries"]
    assert f"{tries[-1]['measured']:.2f} found after {len(tries)} tries" in text
    for one in rows.values():
        assert one["variants"][0]["metric"]["value"] == pytest.approx(0.1065, abs=5e-5)


def test_what_is_said_of_a_gpu_is_what_was_found_there() -> None:
    report = json.loads((ROOT / "tests/benchmarks/results/gpu.json").read_text())
    text = (ROOT / "tests/benchmarks/README.md").read_text()
    assert (report["dry"], report["device"], report["failed"]) == (False, "cuda", [])
    assert f"every part passed in {report['seconds']:.0f} s" in text
    assert gpu_speed_table(report) in text
    found = {name: part["found"] for name, part in report["parts"].items()}
    for precision in ("float32", "bfloat16"):
        engine = found["attribution"][precision]
        assert f"{engine['seconds']:.1f} s" in text
        assert f"{engine['ratio_whole']:.0f} times" in text
    repair = found["repair"]["least-squares"]
    assert f"{repair['seconds']:.1f} s, {repair['peak_bytes'] / 2**30:.1f} GiB" in text
    assert f"five variants: {found['run']['seconds']:.0f} s" in text
    named = {one["name"]: one["metric"]["value"] for one in found["run"]["variants"]}
    assert f"{named['original']:.1%}" == f"{named['pruned']:.1%}" == "97.2%"
