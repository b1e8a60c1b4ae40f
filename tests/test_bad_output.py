"""Output directories that cannot be had: foreign, forbidden, full; nothing of theirs is touched."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import faults, run
from standin import StandIn

from hibprune.execution.output import open_output


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("theirs", ["notes.txt", "steps/mine.json", ".hidden", "onnx/model.onnx"])
def test_an_output_directory_that_holds_something_else(stand_in: StandIn, theirs: str) -> None:
    path = stand_in.root / "out" / theirs
    path.parent.mkdir(parents=True)
    path.write_text("precious")
    before = snapshot(stand_in.root)
    assert faults(run(stand_in)) == [
        f"{stand_in.root}/out: holds something that is not a hibprune run: "
        "choose another --output or empty it"
    ]
    assert snapshot(stand_in.root) == before


def test_a_way_round_to_a_directory_that_holds_something_else(stand_in: StandIn) -> None:
    before = snapshot(stand_in.root)
    (fault,) = faults(run(stand_in, output=stand_in.root / "new" / ".."))
    assert "holds something that is not a hibprune run" in fault
    assert snapshot(stand_in.root) == before


def test_outputs_that_cannot_be_directories(stand_in: StandIn) -> None:
    recipe = stand_in.recipe
    before = snapshot(stand_in.root)
    assert faults(run(stand_in, output=recipe)) == [f"{recipe}: is a file: choose another --output"]
    (below,) = faults(run(stand_in, output=recipe / "below"))
    assert below.endswith(": cannot be written: not a directory: choose another --output")
    (long,) = faults(run(stand_in, output=stand_in.root / ("x" * 300)))
    assert long.endswith(": cannot be written: file name too long: choose another --output")
    assert snapshot(stand_in.root) == before


def test_an_output_that_is_no_text(stand_in: StandIn) -> None:
    """Libraries and JSON take no such path; it is refused before the work, not after."""
    for output in (b"caf\xe9", b"caf\xe9/out"):
        (fault,) = faults(run(stand_in, output=stand_in.root / os.fsdecode(output)))
        assert fault.endswith(": a name that is not UTF-8: choose another --output")
    assert not (stand_in.root / os.fsdecode(b"caf\xe9")).exists()


def test_an_empty_output_directory_will_do(stand_in: StandIn) -> None:
    (stand_in.root / "out/steps").mkdir(parents=True)
    assert run(stand_in).exit_code == 0


def fail_in(monkeypatch: pytest.MonkeyPatch, number: int, part: str) -> None:
    """Let the operating system refuse to write to paths that hold `part`."""
    names = ("write_text", "write_bytes", "mkdir", "open")
    for name, way in ((name, getattr(Path, name)) for name in names):

        def refuse(path: Path, *arguments: Any, way: Any = way, **options: Any) -> Any:
            reads = way.__name__ == "open" and arguments[:1] in ((), ("r",), ("rb",))
            if part in str(path) and not reads:
                raise OSError(number, os.strerror(number), str(path))
            return way(path, *arguments, **options)

        monkeypatch.setattr(Path, name, refuse)


FULL = "the disk is full: free some space and run again, finished steps are kept"
FORBIDDEN = "no permission to write: choose another --output"


@pytest.mark.parametrize(
    ("part", "number", "fault", "kept"),
    [
        ("/out", errno.EACCES, FORBIDDEN, 0),
        (".hibprune", errno.EDQUOT, FULL, 0),
        ("/onnx", errno.ENOSPC, FULL, 0),
        ("/out/onnx", errno.ENOSPC, FULL, 6),
        ("report", errno.EROFS, FORBIDDEN, 10),
    ],
)
def test_a_disk_that_refuses(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    number: int,
    fault: str,
    kept: int,
) -> None:
    output = stand_in.root / "out"
    with monkeypatch.context() as patch:
        fail_in(patch, number, part)
        (told,) = faults(run(stand_in))
    place, _, rest = told.partition(": ")
    assert place.startswith(str(output))
    assert ".partial" not in place
    assert rest == fault
    assert [path for path in output.rglob("*") if ".partial" in path.name] == []
    again = run(stand_in, "--quiet")
    assert again.exit_code == 0, again.output
    assert again.stdout.count("  done  ") == kept


def test_the_error_type_of_safetensors(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer is no Python code; the error text is its own on a full tmpfs."""
    import transformers.modeling_utils
    from safetensors import SafetensorError

    def refuse(tensors: object, filename: str, **options: object) -> None:
        Path(filename).write_bytes(b"half")
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    with monkeypatch.context() as patch:
        patch.setattr(transformers.modeling_utils, "safe_save_file", refuse)
        assert faults(run(stand_in)) == [f"{stand_in.root}/out: {FULL}"]
    files = snapshot(stand_in.root / "out")
    assert sorted(Path(name).name for name in files) == [
        ".hibprune", "attribute.json", "export-original.json", "measure-original.json",
        "original.jsonl", "plan.json", "prune.json", "run.log",
    ]  # fmt: skip


def test_a_defect_of_ours_is_not_dressed_up_as_a_users_fault(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hibprune.stages.score

    def fail(*arguments: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "ours")

    monkeypatch.setattr(hibprune.stages.score, "make_plan", fail)
    result = run(stand_in)
    assert result.exit_code == 1
    assert isinstance(result.exception, FileNotFoundError)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 40 KB, which does not hold the model."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("mounting a file system needs root and a permissive container")
    yield place
    # The weights of the loaded model may still be mapped from there.
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=10)


@pytest.mark.exports
def test_a_disk_that_is_really_full(stand_in: StandIn, small_disk: Path) -> None:
    output = small_disk / "out"
    assert faults(run(stand_in, output=output)) == [f"{output}: {FULL}"]
    assert not list(output.rglob("*.partial*"))
    assert not list(output.glob("*.safetensors"))
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True, timeout=10)
    result = run(stand_in, "--quiet", output=output)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("  done  ") == 0


def test_two_runs_do_not_share_a_directory(stand_in: StandIn) -> None:
    output = stand_in.root / "out"
    with open_output(output):
        (told,) = faults(run(stand_in))
        assert told == (
            f"{output}: another run is at work here: wait for it or choose another --output"
        )
        assert not (output / "steps/measure-original.json").exists()
    assert run(stand_in).exit_code == 0
