"""Nothing is written outside the output directory, whatever lies in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from commands import faults, invoke

from hibprune.errors import UserError
from hibprune.execution.files import open_to_append, require_own
from hibprune.execution.output import MARKER, check_output, open_output

pytestmark = pytest.mark.timeout(120)

REMEDY = "remove it or choose another --output"
LINK = f"a link, and nothing is written behind links: {REMEDY}"


@pytest.fixture
def output(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished run, below which something is put that leads elsewhere."""
    return Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "out"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of somebody else's, with files of the names that a run writes."""
    directory = tmp_path / "somebody"
    for name in ("run.log", "model.onnx", "plan.json", "heads.png", ".hibprune", "x.partial.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("precious")
    return directory


def state_of(directory: Path) -> dict[str, tuple[str, int]]:
    return {str(path): (path.read_text(), path.stat().st_mtime_ns) for path in directory.iterdir()}


def put_in_place(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def run_again(stand_ins: Callable[[str], Path], output: Path) -> Result:
    return invoke("run", stand_ins("keyword_spotting") / "recipe.yaml", "--output", output)


LINKED = (
    "run.log", "report.md", "README.md", "manifest.json", "recipe.yaml", "config.json",
    "model.safetensors", "onnx", "onnx/model.onnx", "steps", "steps/plan.json", "steps/.hibprune",
    "steps/attribute.partial.json", "figures", "figures/heads.png", "predictions",
    "predictions/pruned.jsonl", "notes.txt", "onnx/.model.1.partial.onnx", ".scratch.1.partial",
)  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("target", ["a file", "a directory", "nothing"])
def test_a_link_below_an_output_directory(
    stand_ins: Callable[[str], Path], output: Path, outside: Path, name: str, target: str
) -> None:
    leads_to = {"a file": outside / "run.log", "a directory": outside, "nothing": outside / "new"}
    put_in_place(output / name, lambda path: path.symlink_to(leads_to[target]))
    before = state_of(outside)
    (fault,) = faults(run_again(stand_ins, output))
    # A marker that is not there is no marker.
    known = target == "a file" or name != "steps/.hibprune"
    known = known and (name, target) not in {("steps", "a file"), ("steps", "nothing")}
    if known:
        assert fault == f"{output / name}: {LINK}"
    else:
        assert "holds something that is not a hibprune run" in fault
    assert state_of(outside) == before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, f"a pipe, not a file: {REMEDY}"),
        (lambda path: path.symlink_to("/dev/zero"), LINK),
        (lambda path: path.symlink_to(path), LINK),
        (lambda path: path.hardlink_to(path.parent / "elsewhere"),
         f"has another name elsewhere (a hard link): {REMEDY}"),
    ],
)  # fmt: skip
def test_a_log_that_is_no_log(
    stand_ins: Callable[[str], Path],
    output: Path,
    make: Callable[[Path], object],
    said: str,
) -> None:
    (output / "elsewhere").write_text("precious")
    put_in_place(output / "run.log", make)
    (fault,) = faults(run_again(stand_ins, output))
    assert fault == f"{output}/run.log: {said}"
    assert (output / "elsewhere").read_text() == "precious"


@pytest.mark.parametrize("name", ["steps/attribute.json", "steps/attribute.partial.json", "onnx"])
def test_pipes_in_a_directory_do_not_hang_a_run(
    stand_ins: Callable[[str], Path], output: Path, name: str
) -> None:
    put_in_place(output / name, os.mkfifo)
    assert faults(run_again(stand_ins, output)) == [
        f"{output / name}: a pipe, not a file: {REMEDY}"
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("onnx", "a file"), ("figures", "a file"), ("report.md", "a directory"),
     ("steps/plan.json", "a directory"), ("run.log", "a directory")],
)  # fmt: skip
def test_a_file_where_a_directory_should_be_and_the_other_way_round(
    stand_ins: Callable[[str], Path], output: Path, name: str, kind: str
) -> None:
    make = Path.touch if kind == "a file" else Path.mkdir
    put_in_place(output / name, lambda path: make(path))
    (fault,) = faults(run_again(stand_ins, output))
    assert fault.startswith(str(output))
    assert fault.endswith("choose another --output")


def test_what_other_commands_write_is_held_to_the_same(
    stand_ins: Callable[[str], Path], output: Path, outside: Path, tmp_path: Path
) -> None:
    before = state_of(outside)
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    (output / "compare.md").symlink_to(outside / "run.log")
    fault = f"{output / 'compare.md'}: {LINK}"
    compared = invoke("compare", recipe, "--methods", "magnitude,random", "--output", output)
    assert faults(compared) == [fault]
    into = tmp_path / "correlated"
    (into / "steps").mkdir(parents=True)
    (into / MARKER).touch()
    (into / "correlate.png").symlink_to(outside / "run.log")
    (output / "compare.md").unlink()
    assert faults(invoke("correlate", output, output, "--output", into)) == [
        f"{into / 'correlate.png'}: {LINK}"
    ]
    assert state_of(outside) == before


def test_the_output_directory_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with open_output(tmp_path / "out"):
        assert (tmp_path / "disk" / MARKER).is_file()
    check_output(tmp_path / "out")


@pytest.mark.parametrize("way", ["out", "out/below", "file", "file/below", "pipe"])
def test_outputs_that_lead_in_a_circle_or_nowhere(tmp_path: Path, way: str) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "out")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"choose another --output$"):
        check_output(tmp_path / way)
    with pytest.raises(UserError, match=r"choose another --output$"), open_output(tmp_path / way):
        pass


def test_a_link_that_comes_while_a_run_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "out/onnx").mkdir(parents=True)
    require_own(tmp_path / "out")
    (tmp_path / "out/onnx").rmdir()
    (tmp_path / "out/onnx").symlink_to(tmp_path)
    with pytest.raises(UserError, match="nothing is written behind links"):
        require_own(tmp_path / "out")


def test_appending_makes_and_continues_a_file(tmp_path: Path) -> None:
    for line in ("one\n", "two\n"):
        with open_to_append(tmp_path / "run.log") as file:
            file.write(line)
    assert (tmp_path / "run.log").read_text() == "one\ntwo\n"
