"""The command line as people and programs meet it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import invoke
from standin import CALIBRATION_CLIPS, SLOWLY_VALIDATED, STAND_INS, VALIDATION_CLIPS, StandIn

import hibprune
from hibprune.cli import main
from hibprune.execution.files import sha256_of
from hibprune.records.manifest import Manifest

STEPS = (
    "load", "export-original", "original", "attribute", "plan", "prune", "repair", "export",
    "pruned", "benchmark", "example", "report",
)  # fmt: skip


def validated(name: str) -> int:
    """How many validation clips or texts a stand-in has."""
    return SLOWLY_VALIDATED if name.startswith("encoder_decoder") else VALIDATION_CLIPS


def steps_told(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if line]


@pytest.fixture
def again(finished: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished run of the keyword spotter that may be changed."""
    return Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "again"))


def test_a_fresh_process_says_a_line_per_step_and_a_table_and_nothing_else(
    stand_in: StandIn, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from hibprune.cli import main; main()"]
    told = subprocess.run(
        [*command, "run", str(stand_in.recipe), "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=Path(hibprune.__file__).parent.parent,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    table = next(number for number, line in enumerate(lines) if line.startswith("recipe "))
    assert steps_told("\n".join(lines[:table])) == list(STEPS)
    for line in lines[:table]:
        assert re.match(r"[\w-]+ +\d+\.\d s  \S", line), line
    said = " ".join(told.stdout.split())
    assert "3 of 8 attention heads (38 %) were removed" in said
    assert "Ranges are 95 % intervals; accuracy (higher is better) over 30 clips" in said


def test_quiet_says_only_the_steps(again: Path, stand_ins: Callable[[str], Path]) -> None:
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    result = invoke("run", recipe, "--output", again, "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    assert steps_told(result.stdout) == list(STEPS)


def test_json_is_the_manifest_alone(again: Path, stand_ins: Callable[[str], Path]) -> None:
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    result = invoke("run", recipe, "--output", again, "--json")
    assert result.exit_code == 0
    assert steps_told(result.stderr) == list(STEPS)
    manifest = Manifest.model_validate_json(result.stdout)
    assert manifest == Manifest.model_validate_json((again / "manifest.json").read_text())


@pytest.mark.parametrize("name", STAND_INS)
def test_a_run_leaves_a_directory_that_its_manifest_accounts_for(
    finished: Callable[[str], Path], name: str
) -> None:
    output = finished(name)
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    kept = {"run.log", "manifest.json"}
    present = {
        path.relative_to(output).as_posix()
        for path in output.rglob("*")
        if path.is_file() and path.parent.name != "steps"
    }
    assert present == set(manifest.files) | kept
    assert {name: sha256_of(output / name) for name in manifest.files} == manifest.files
    assert present >= {
        "README.md", "config.json", "model.safetensors", "recipe.yaml", "report.md",
    }  # fmt: skip
    preparing = "tokenizer.json" if manifest.input == "text" else "preprocessor_config.json"
    assert preparing in present
    graphs = sorted(output.glob("onnx/*.onnx"))
    decoders = ["decoder_model_merged", "encoder_model"]
    expected = decoders if name.startswith("encoder_decoder") else ["model"]
    assert [graph.stem for graph in graphs] == expected
    assert (manifest.heads.total, manifest.heads.removed_count) == (8, 3)
    assert (manifest.calibration.n, manifest.validation.n) == (CALIBRATION_CLIPS, validated(name))
    original, pruned = manifest.variants
    assert pruned.parameters < original.parameters
    assert pruned.size_bytes == sum(graph.stat().st_size for graph in graphs)
    assert not list(output.rglob(".*.partial*"))


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("model", ["original", "pruned"])
def test_every_clip_can_be_looked_at(
    finished: Callable[[str], Path], name: str, model: str
) -> None:
    output = finished(name)
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    lines = (output / f"predictions/{model}.jsonl").read_text().splitlines()
    clips = [json.loads(line) for line in lines]
    assert len({clip["id"] for clip in clips}) == validated(name)
    assert all(clip["errors"] == 0 for clip in clips if clip["prediction"] == clip["reference"])
    rate = sum(clip["errors"] for clip in clips) / sum(clip["counted"] for clip in clips)
    variant = manifest.variant(model)
    value = variant.metric.value
    assert rate == pytest.approx(1 - value if manifest.metric.higher_is_better else value)
    if model != "original":
        assert variant.change is not None
        change = value - manifest.original.metric.value
        assert variant.change.low <= change <= variant.change.high


def test_the_log_keeps_what_was_said(finished: Callable[[str], Path]) -> None:
    lines = (finished("keyword_spotting") / "run.log").read_text().splitlines()
    assert [line.split()[1] for line in lines] == list(STEPS)
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)


LIMITS_THAT_HOLD = {"max_accuracy_drop": 1.0, "min_speedup": 1e-4, "max_file_mb": 10.0}
LIMITS_THAT_FAIL = {"min_speedup": 1000.0, "max_file_mb": 0.01}


def test_gates_that_hold(again: Path, stand_ins: Callable[[str], Path]) -> None:
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    limits = [f"--set=gates.{name}={limit:f}" for name, limit in LIMITS_THAT_HOLD.items()]
    result = invoke("run", recipe, "--output", again, *limits)
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json((again / "manifest.json").read_text())
    assert {gate.name: gate.limit for gate in manifest.gates} == LIMITS_THAT_HOLD
    assert all(gate.verdict == "passed" for gate in manifest.gates)
    assert result.stderr == ""


@pytest.mark.parametrize("name", LIMITS_THAT_FAIL)
def test_a_gate_that_fails(again: Path, stand_ins: Callable[[str], Path], name: str) -> None:
    limit = LIMITS_THAT_FAIL[name]
    (again / "report.md").unlink()
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    result = invoke("run", recipe, "--output", again, "--set", f"gates.{name}={limit}", "--quiet")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"gate failed: {name}: limit {limit:g}, measured ")
    manifest = Manifest.model_validate_json((again / "manifest.json").read_text())
    (gate,) = manifest.gates
    assert (gate.name, gate.limit, gate.verdict) == (name, limit, "failed")
    assert name in (again / "report.md").read_text()
    assert yaml.safe_load((again / "recipe.yaml").read_text())["gates"] == {name: limit}


@pytest.mark.parametrize(
    ("strict", "code", "verdict"), [(False, 0, "undecided"), (True, 3, "failed")]
)
def test_a_gate_that_its_interval_leaves_open(
    finished: Callable[[str], Path],
    stand_ins: Callable[[str], Path],
    tmp_path: Path,
    strict: bool,
    code: int,
    verdict: str,
) -> None:
    """30 transcripts cannot show that no word error was added."""
    output = Path(shutil.copytree(finished("speech_recognition"), tmp_path / "out"))
    result = invoke(
        "run", stand_ins("speech_recognition") / "recipe.yaml", "--output", output, "--quiet",
        "--set", "gates.max_wer_rise=0", "--set", f"gates.strict={strict}",
    )  # fmt: skip
    assert result.exit_code == code
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"gate {verdict}: max_wer_rise: limit 0, measured ")
    assert ("gates.strict is set" in line) == strict
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    (gate,) = manifest.gates
    assert (gate.verdict, gate.strict) == (verdict, strict)
    assert gate.value == pytest.approx(manifest.held.metric.value - manifest.original.metric.value)
    assert gate.interval == manifest.held.change


def test_output_defaults_to_the_recipes_name(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("run", stand_in.recipe, "--set", "name=my.spotter", "--quiet")
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "exported_models/my.spotter/manifest.json").read_text())
    assert (manifest["recipe"], manifest["device"]) == ("my.spotter", "cpu")


def test_the_models_own_labels_serve_unlabelled_calibration(
    stand_in: StandIn, tmp_path: Path
) -> None:
    rows = [{"audio": row["audio"]} for row in stand_in.rows("calibration")]
    stand_in.write_rows("calibration", rows)
    overrides = ["--set=calibration.source.labelled=false", "--quiet", "--output", tmp_path / "out"]
    result = invoke("run", stand_in.recipe, *overrides)
    assert result.exit_code == 2
    assert result.stderr == (
        "error: calibration: calibration/0.wav has no label: label the clips or set "
        "calibration.labels: model\n"
    )
    result = invoke("run", stand_in.recipe, *overrides, "--set=calibration.labels=model")
    assert result.exit_code == 0, result.output
    assert "label " in result.stdout


def test_every_command_and_option_is_explained() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        text = invoke(name, "--help").stdout
        for parameter in command.params:
            if getattr(parameter, "help", None) is None:
                assert parameter.name is not None
                assert parameter.name.upper() in text, (name, parameter.name)
    documented = {
        "run",
        "compare",
        "explain",
        "frontier",
        "correlate",
        "check",
        "schema",
        "methods",
        "predict",
        "show",
        "verify",
        "push",
    }
    assert set(main.commands) == documented


def test_methods_lists_every_method_with_its_source_and_cost() -> None:
    from hibprune.attribution import METHODS

    lines = invoke("methods").stdout.splitlines()
    assert len(lines) == 3 * len(METHODS)
    assert [line.split()[0] for line in lines[::3]] == [method.name() for method in METHODS]
    # Titles, sources and costs start in one column, apart from the longest name.
    (column,) = {line.index("source: ") for line in lines[1::3]}
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)
    assert max(map(len, lines)) <= 100


def test_the_version_is_the_packages() -> None:
    assert invoke("--version").stdout == f"hibprune, version {hibprune.__version__}\n"


@pytest.mark.parametrize("command", ["run", "compare", "correlate"])
def test_an_empty_output_is_not_the_directory_one_is_in(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    """As `--output "$WORK"` is where WORK is not set."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    inputs = (here, here) if command == "correlate" else (stand_in.recipe,)
    result = invoke(command, *inputs, "--output", "")
    assert result.exit_code == 2
    assert "'--output': it is empty: name a directory" in result.stderr
    assert list(here.iterdir()) == []


def test_the_command_line_runs_as_a_module() -> None:
    module = (sys.executable, "-m", "hibprune.cli", "--version")
    told = subprocess.run(module, capture_output=True, text=True, check=True)
    assert told.stdout == f"hibprune, version {hibprune.__version__}\n"
