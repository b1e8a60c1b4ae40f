"""What a command prints, and how it ends when it cannot print, or when a package is missing."""

from __future__ import annotations

import errno
import io
import logging
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import interpreters
import pytest
from commands import faults, invoke
from processes import HIBPRUNE
from rich.console import Console

from hibprune.cli import main
from hibprune.errors import UserError, import_fault, printable, shortened
from hibprune.execution.console import say_json
from hibprune.execution.libraries import PACKAGES, require_packages
from hibprune.execution.progress import Narrator, Terminal

ROOT = Path(__file__).parents[1]


def start(stdout: int, stderr: Path, *arguments: object) -> interpreters.Interpreter:
    """The command line in a fresh process, as a shell starts it."""
    with stderr.open("wb") as file:
        return interpreters.start(
            HIBPRUNE, *arguments, ready="hibprune", stdout=stdout, stderr=file.fileno()
        )


@pytest.mark.parametrize("command", [("methods",), ("schema",)])
def test_a_reader_that_goes_away_is_no_fault(command: tuple[str, ...], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(writer, tmp_path / "said", *command)
    os.close(writer)
    assert (process.wait(), (tmp_path / "said").read_text()) == (141, "")


def test_a_run_whose_reader_goes_away_stops_quietly_and_can_be_taken_up(
    stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    reader, writer = os.pipe()
    process = start(writer, tmp_path / "said", "run", recipe, "--output", tmp_path / "out")
    os.close(writer)
    with os.fdopen(reader) as said:
        assert said.readline().startswith("load ")
    assert (process.wait(), (tmp_path / "said").read_text()) == (141, "")
    assert not (tmp_path / "out/manifest.json").exists()
    assert not list((tmp_path / "out").rglob(".*.partial*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", [("--help",), ("run",)])
def test_an_output_that_takes_nothing(
    command: tuple[str, ...], stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = command
    if command == ("run",):
        recipe = stand_ins("keyword_spotting") / "recipe.yaml"
        arguments = ("run", recipe, "--output", tmp_path / "out")
    with Path("/dev/full").open("wb") as full:
        code = start(full.fileno(), tmp_path / "said", *arguments).wait()
    assert code == 2
    assert (tmp_path / "said").read_text() == (
        "error: standard output: cannot be written: no space left on device: send it elsewhere\n"
    )


def test_a_terminal_that_knows_few_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    Terminal().print("0.5 s ×1.29 ✓")
    assert shown.getvalue().endswith(b"0.5 s ?1.29 ?\n")


def test_the_disk_of_the_output_is_told_from_that_of_the_directory() -> None:
    class Full(Terminal):
        def print(self, *objects: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"^standard output: cannot be written: no space left"):
        Narrator(Full()).say("a line")


# What is printed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\nb\tc", "a b c"),
        ("\x1b[31mred\x1b[0m", "�[31mred�[0m"),
        ("bell\x07 and \x9b31m", "bell� and �31m"),
        ("\u202egnp.exe", "�gnp.exe"),
        ("\u2066a\u2069", "�a�"),
        ("line\u2028line\u2029", "line�line�"),
        ("half \ud800", "half �"),
        ("हिन्दी", "हिन्दी"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("日本　語", "日本　語"),
        ("é ½ ✓", "é ½ ✓"),
    ],
)
def test_what_steers_a_terminal_is_not_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_texts_are_cut() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"


def test_neither_terminal_nor_log_gets_what_steers(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w", encoding="utf-8") as file:
        narrator = Narrator(Console(file=file), bars=False)
        narrator.say("clip \x1b[2J.wav: \u202egnp")
        with narrator.log_to(tmp_path / "run.log"), narrator.step("plan\x07") as narration:
            narration.found("w\x1b[31m and a name of \udcff")
    for name in ("said", "run.log"):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2
        assert all(line.isprintable() for line in lines), name


def test_json_escapes_what_steers(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    content = {"a": "\x9b31m\u202e", "b": ["ü"]}
    say_json(json.dumps(content, ensure_ascii=False, indent=1))
    said = capsys.readouterr().out
    assert json.loads(said) == content
    assert all(line.isprintable() for line in said.splitlines())
    assert "ü" in said


# Packages ------------------------------------------------------------------------------------


def test_every_dependency_is_looked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        "".join(letter if letter.isalnum() or letter == "-" else " " for letter in entry).split()[0]
        for entry in project["dependencies"]
    }
    imported = {
        "pyyaml": "yaml", "optimum-onnx": "optimum", "onnxruntime-gpu": "onnxruntime",
        "huggingface-hub": "huggingface_hub", "markdown-it-py": "markdown_it",
    }  # fmt: skip
    # Without click there is no command to look for anything.
    assert set(PACKAGES) == {imported.get(name, name) for name in declared} - {"click"}
    require_packages()


@pytest.mark.parametrize("package", ["jiwer", "optimum", "torch", "yaml"])
def test_a_missing_package_is_named_before_any_work(
    package: str, stand_ins: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for arguments in (
        ("run", stand_ins("keyword_spotting") / "recipe.yaml", "--output", tmp_path / "out"),
        ("check", stand_ins("keyword_spotting") / "recipe.yaml"),
        ("predict", tmp_path, "a.wav"),
        ("correlate", tmp_path, tmp_path),
    ):
        (fault,) = faults(invoke(*arguments))
        assert "not installed: pip install " in fault
        assert package in fault.lower()
    assert not (tmp_path / "out").exists()


def test_a_package_that_turns_out_to_be_broken() -> None:
    broken = ImportError("libc10_cuda.so: cannot open shared object file", name="torchaudio._ext")
    told = import_fault(broken)
    assert told == (
        "the package 'torchaudio' cannot be imported: libc10_cuda.so: cannot open shared object "
        "file: install it again"
    )
    wrapped = RuntimeError("Failed to import transformers.x")
    wrapped.__cause__ = broken
    assert import_fault(wrapped) == told
    assert import_fault(RuntimeError("another")) is None
    for ours in ("hibprune.stages", "hibprune"):
        assert import_fault(ImportError("cannot import name 'x'", name=ours)) is None
        assert import_fault(ModuleNotFoundError("No module", name=ours)) is None


# Telemetry -----------------------------------------------------------------------------------


def test_onnxruntime_leaves_no_identifier_of_the_machine(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        # Those in which it sends nothing anyway.
        if name not in ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI")
    }
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for program in (
        "import hibprune, onnxruntime; onnxruntime.SessionOptions()",
        "from hibprune.execution.runtime import session_options; session_options('cpu')",
    ):
        subprocess.run(
            [sys.executable, "-c", program], check=True, cwd=ROOT, env=environment, timeout=120
        )
        assert [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path)] == []


def test_datasets_logs_nothing_that_it_raises() -> None:
    """In a process of its own: in this one it may have been imported before it was told."""
    program = (
        "from hibprune.execution.libraries import quiet_libraries; quiet_libraries(); "
        "import datasets; print(datasets.logging.get_verbosity())"
    )
    told = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True)
    assert told.stdout == f"{logging.CRITICAL}\n", told.stderr


def test_quoted_text_stays_on_one_line() -> None:
    """Or it would begin a line of its own, such as that of another fault."""
    assert shortened("a\nerror: b\u2028c\r\nd") == "a error: b c d"
    assert shortened("x" * 100, 10) == "xxxxxxxxx…"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/home/somebody/out/.scratch.0.4711.partial/original/onnx/model.onnx", None),
        ("out/.scratch.12.1.partial/.scratch.0.1.partial/original/onnx/model.onnx", None),
        ("out/onnx/model.onnx", "out/onnx/model.onnx"),
    ],
)
def test_places_that_are_gone_are_not_told(
    place: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise UserError(f"{place}: ONNX Runtime fails: 50 by 51")

    monkeypatch.setattr("hibprune.cli.recipes.opened", failing)
    assert faults(invoke("check", tmp_path / "recipe.yaml")) == [
        f"{told or 'original/onnx/model.onnx'}: ONNX Runtime fails: 50 by 51"
    ]
