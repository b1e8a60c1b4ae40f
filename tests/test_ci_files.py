"""Gates as JUnit XML, and the verdict on the page of a job."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import faults, invoke, run
from manifests import make_manifest
from standin import quick_keyword_spotting

from hibprune.errors import UserError
from hibprune.records.base import Interval
from hibprune.records.measurements import Gate
from hibprune.report.ci_service import job_summary, junit_xml, tell_ci

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


def what_comes_through(pipe: Path) -> tuple[threading.Thread, list[str]]:
    """Somebody at the other end of a named pipe, and what that one reads of it."""
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append(pipe.read_text()), daemon=True)
    reader.start()
    return reader, said


def test_a_named_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    manifest, pipe = make_manifest(gates=GATES), tmp_path / "pipe"
    os.mkfifo(pipe)
    for junit, summary, expected in (
        (pipe, None, junit_xml(manifest)),
        (None, str(pipe), job_summary(manifest)),
    ):
        reader, said = what_comes_through(pipe)
        tell_ci(manifest, junit, summary)
        assert stat.S_ISFIFO(pipe.lstat().st_mode)
        reader.join(10)
        assert said == [expected]
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path: Path, there: bool) -> None:
    manifest, link, file = make_manifest(gates=GATES), tmp_path / "link", tmp_path / "new/file"
    if there:
        file.parent.mkdir()
        file.write_text("What others wrote\n")
    link.symlink_to("new/file")
    tell_ci(manifest, link, None)
    assert link.is_symlink()
    assert file.read_text() == junit_xml(manifest)

    tell_ci(manifest, None, str(link))
    assert link.is_symlink()
    assert file.read_text() == junit_xml(manifest) + job_summary(manifest)


def test_a_name_of_standard_output_keeps_what_was_said_before(tmp_path: Path) -> None:
    link, log = tmp_path / "link", tmp_path / "log"
    link.symlink_to("/proc/self/fd/1")
    if not link.exists():
        pytest.skip("the system has no names for what a process has open")
    program = (
        "from pathlib import Path\n"
        "from hibprune.execution.named_files import append_named, write_named\n"
        f"link = Path({str(link)!r})\n"
        "print('one')\nwrite_named(link, 'two\\n')\nappend_named(link, 'three\\n')\nprint('four')"
    )
    with log.open("w") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert log.read_text() == "one\ntwo\nthree\nfour\n"
    assert link.is_symlink()


def test_a_file_that_cannot_be_written_is_told_of_by_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        tell_ci(make_manifest(), tmp_path / "file/gates.xml", None)
    assert str(caught.value) == (
        f"--junit: {tmp_path}/file/gates.xml cannot be written to: not a directory: "
        "name another file; the run is finished"
    )


@pytest.mark.parametrize(
    "name", ["manifest.json", "model.safetensors", "onnx/model.onnx", "new", "../link"]
)
def test_no_file_of_the_run_is_taken_for_what_ci_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stand_in = quick_keyword_spotting(tmp_path / "task")
    output = tmp_path / "out"
    (tmp_path / "link").symlink_to("out/manifest.json")
    assert faults(run(stand_in, "--junit", str(output / name), output=output)) == [
        f"--junit: {output / name}: in the directory of the run, whose files have such names: "
        "name a .xml file or one elsewhere"
    ]
    assert faults(run(stand_in, "--junit", str(tmp_path / "parent"), output=tmp_path / "parent/x"))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(output / name))
    assert faults(run(stand_in, output=output)) == [
        f"GITHUB_STEP_SUMMARY: {output / name}: in the directory of the run: name a file elsewhere "
        "or choose another --output"
    ]
    assert not output.exists()


def test_gates_beside_the_files_of_a_run_are_none_of_them(tmp_path: Path) -> None:
    stand_in = quick_keyword_spotting(tmp_path / "task")
    junit = stand_in.root / "out/gates.xml"
    for limit in ("0.9", "0.8"):
        result = run(stand_in, "--junit", str(junit), "--set", f"gates.max_accuracy_drop={limit}")
        assert result.exit_code in (0, 3), result.output
        assert limit in junit.read_text()
    verified = invoke("verify", stand_in.root / "out")
    assert verified.exit_code == 0, verified.output
