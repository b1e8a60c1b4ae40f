"""What needs no model imports nothing slow: help, reference, and what is wrong with a recipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hibprune.cli import main

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "recipes/quickstart.yaml"

SLOW = (
    "torch", "torchaudio", "transformers", "onnx", "onnxruntime", "optimum", "datasets",
    "matplotlib", "scipy",
)  # fmt: skip

PROGRAM = f"""
import json, sys
from click.testing import CliRunner
from hibprune.cli import main
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command)
    loaded = [name for name in {SLOW!r} if name in sys.modules]
    print(json.dumps([result.exit_code, loaded, result.stderr.splitlines()]))
"""

Told = tuple[int, list[str], list[str]]
"""Exit code of a command, what had been imported of what is slow, and its errors."""


def told(*commands: tuple[object, ...]) -> list[Told]:
    """What came of commands that a fresh process carries out one after the other."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([list(map(str, one)) for one in commands])],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    found = [json.loads(line) for line in told.stdout.splitlines()]
    return [(code, loaded, errors) for code, loaded, errors in found]


def test_help_and_reference_import_nothing_slow() -> None:
    commands = [
        ("--help",),
        ("--version",),
        ("methods",),
        ("schema",),
        ("schema", "--markdown"),
        *((command, "--help") for command in main.commands),
    ]
    assert told(*commands) == [(0, [], [])] * len(commands)


FAULTS = {
    "buget.fraction=0.3": "budget",
    "gates.max_acuracy_drop=0.1": "max_accuracy_drop",
    "budget.scope=everywhere": "'global'",
    "budget.fraction=lots": "a number",
    "attribution.method=hip": "hib",
    "task={kind: asr-seq2seq, language: 5}": "text",
    "task={kind: asr-ctc, text: {language: Germann}}": "german",
    "task={kind: asr-ctc, text: {language: German, normaliser: whisper-english}}": "not for 'de'",
    # Keys of earlier versions.
    "gates.smallest_speedup=1.05": "write min_speedup instead",
    "removal.leave=mean": "write repair instead",
    # Right in themselves, and nothing there.
    "model.source=./no-such-model": "no such directory",
    "validation.source={kind: folder, path: no-such-folder}": "no such directory",
    "calibration.source={kind: datasets, path: ./no/such/set}": "no/such/set",
}


@pytest.mark.parametrize("command", ["run", "check", "compare"])
def test_what_is_wrong_with_a_recipe_is_told_before_anything_slow_is_imported(
    command: str, tmp_path: Path
) -> None:
    output = () if command == "check" else ("--output", tmp_path / "out")
    results = told(*((command, QUICKSTART, "--set", fault, *output) for fault in FAULTS))
    for (fault, said), (code, loaded, errors) in zip(FAULTS.items(), results, strict=True):
        assert (code, loaded) == (2, []), fault
        assert said in errors[0], errors
        assert all(line.startswith("error: ") for line in errors)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_slow_would_be_noticed() -> None:
    """Past the recipe the model is opened, which takes torch."""
    ((code, loaded, errors),) = told(("check", QUICKSTART, "--set", "calibration.samples=100000"))
    assert (code, errors != []) == (2, True)
    assert "torch" in loaded


def test_a_missing_variant_is_told_without_the_libraries_that_run_one(tmp_path: Path) -> None:
    ((code, loaded, errors),) = told(("predict", tmp_path, "a.wav", "--variant", "int8"))
    assert (code, loaded) == (2, [])
    fault = "no finished hibprune run: no manifest.json that can be read in it"
    assert errors == [f"error: {tmp_path}: {fault}"]


def test_languages_by_name_are_those_of_transformers() -> None:
    """The table is kept here, so that a recipe is read without importing transformers."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    from hibprune.tasks.languages import CODES_BY_NAME

    assert CODES_BY_NAME == TO_LANGUAGE_CODE
