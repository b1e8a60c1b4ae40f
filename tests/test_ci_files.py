"""Gates as JUnit XML, and the verdict on the page of a job."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import run
from manifests import make_manifest
from standin import quick_keyword_spotting

from hibprune.records.base import Interval
from hibprune.records.measurements import Gate
from hibprune.report.ci import job_summary, junit_xml

GATES = (
    Gate(name="max_accuracy_drop", limit=0.03, value=0.0, verdict="passed"),
    Gate(
        name="min_speedup", limit=2.0, value=1.5, interval=Interval(1.4, 1.6), verdict="failed"
    ),
    Gate(
        name="max_size_mb", limit=2.0, value=2.0, interval=Interval(1.9, 2.1), verdict="undecided"
    ),
)  # fmt: skip


def test_a_test_for_every_gate() -> None:
    suite = ElementTree.fromstring(junit_xml(make_manifest(gates=GATES)))[0]
    assert [suite.get(name) for name in ("tests", "failures", "skipped", "errors")] == [
        "3", "1", "1", "0",
    ]  # fmt: skip
    outcomes = {case.get("name"): [child.tag for child in case] for case in suite}
    assert outcomes == {
        "max_accuracy_drop": ["system-out"],
        "min_speedup": ["failure"],
        "max_size_mb": ["skipped"],
    }
    assert "measured 1.5" in str(suite[1][0].get("message"))


def test_without_gates_a_test_that_passes() -> None:
    suite = ElementTree.fromstring(junit_xml(make_manifest(gates=())))[0]
    assert suite.get("tests") == "1"
    assert [list(case) for case in suite] == [[]]


def test_names_of_strangers_break_neither() -> None:
    manifest = make_manifest(recipe='a & b <c> "d" \x07 | `e` # f', gates=GATES)
    assert "a & b <c>" in str(ElementTree.fromstring(junit_xml(manifest))[0].get("name"))
    title = job_summary(manifest).splitlines()[0]
    assert "<c>" not in title
    assert "&lt;c&gt;" in title


def test_a_run_writes_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = quick_keyword_spotting(tmp_path / "task")
    page, junit = tmp_path / "page.md", tmp_path / "new/gates.xml"
    page.write_text("What others wrote\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    result = run(stand_in, "--junit", str(junit), "--set", "gates.max_accuracy_drop=0.0001")
    assert result.exit_code in (0, 3), result.output
    assert page.read_text().startswith("What others wrote\n### hibprune: ")
    assert ElementTree.parse(junit).getroot()[0].get("tests") == "1"

    # A directory is told of before anything is done.
    result = run(stand_in, "--junit", str(tmp_path))
    assert result.exit_code == 2
    assert "is a directory" in result.stderr
