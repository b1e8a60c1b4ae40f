"""The command line as people and programs meet it."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from standin import CALIBRATION_CLIPS, LABELS, SLOTS, VALIDATION_CLIPS, StandIn

import hibprune
from hibprune.cli import main
from hibprune.files import sha256_of
from hibprune.manifest import Manifest

STEPS = (
    "load", "baseline", "attribute", "plan", "prune", "validate", "export", "exported",
    "benchmark", "report",
)  # fmt: skip
STAND_INS = ("keyword_spotting", "intents", "speech_recognition")


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def steps_told(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if line]


@pytest.fixture(scope="session")
def finished(
    stand_ins: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The directory of a finished run of a stand-in by name; made once, not to be changed."""
    made: dict[str, Path] = {}

    def directory(name: str) -> Path:
        if name not in made:
            output = tmp_path_factory.mktemp("finished") / name
            result = invoke("run", stand_ins(name) / "recipe.yaml", "--output", output, "--quiet")
            assert result.exit_code == 0, result.output
            made[name] = output
        return made[name]

    return directory


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
        assert re.match(r"\w+ +\d+\.\d s  \S", line), line
    assert re.search(r"Heads +8 +5 ", told.stdout)
    assert "Ranges are 95 % intervals; metric over 30 clips" in told.stdout


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
        "README.md", "config.json", "preprocessor_config.json", "model.safetensors",
        "onnx/model.onnx", "recipe.yaml", "report.md",
    }  # fmt: skip
    assert (manifest.heads.total, manifest.heads.removed_count) == (8, 3)
    assert (manifest.calibration.n, manifest.validation.n) == (CALIBRATION_CLIPS, VALIDATION_CLIPS)
    assert manifest.parameters.after < manifest.parameters.before
    assert manifest.size_bytes.after == (output / "onnx/model.onnx").stat().st_size
    assert not list(output.rglob(".*.partial*"))


def test_the_log_keeps_what_was_said(finished: Callable[[str], Path]) -> None:
    lines = (finished("keyword_spotting") / "run.log").read_text().splitlines()
    assert [line.split()[1] for line in lines] == list(STEPS)
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)


LIMITS_THAT_HOLD = {"largest_accuracy_drop": 1.0, "smallest_speedup": 0.01, "largest_file_mb": 10.0}
LIMITS_THAT_FAIL = {"smallest_speedup": 1000.0, "largest_file_mb": 0.01}


def test_gates_that_hold(again: Path, stand_ins: Callable[[str], Path]) -> None:
    recipe = stand_ins("keyword_spotting") / "recipe.yaml"
    limits = [f"--set=gates.{name}={limit}" for name, limit in LIMITS_THAT_HOLD.items()]
    result = invoke("run", recipe, "--output", again, *limits)
    assert result.exit_code == 0, result.output
    manifest = Manifest.model_validate_json((again / "manifest.json").read_text())
    assert {gate.name: gate.limit for gate in manifest.gates} == LIMITS_THAT_HOLD
    assert all(gate.passed for gate in manifest.gates)
    assert "gate failed" not in result.stderr


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
    assert (gate.name, gate.limit, gate.passed) == (name, limit, False)
    assert name in (again / "report.md").read_text()
    assert yaml.safe_load((again / "recipe.yaml").read_text())["gates"] == {name: limit}


def test_a_wer_gate_that_fails(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path], tmp_path: Path
) -> None:
    """With a forged baseline record, since a model that guesses can hardly get worse."""
    output = Path(shutil.copytree(finished("speech_recognition"), tmp_path / "out"))
    path = output / "steps/baseline.json"
    record = json.loads(path.read_text())
    record["result"]["value"] = 0.5
    path.write_text(json.dumps(record))
    result = invoke(
        "run", stand_ins("speech_recognition") / "recipe.yaml",
        "--output", output, "--set", "gates.largest_wer_rise=0.01", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 3
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
    (gate,) = manifest.gates
    assert gate.value == pytest.approx(manifest.metric.exported.value - 0.5)


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


# Predictions ---------------------------------------------------------------------------------


def test_predict_prints_a_label(finished: Callable[[str], Path], stand_in: StandIn) -> None:
    files = [stand_in.clip("validation", number) for number in (0, 1)]
    result = invoke("predict", finished("keyword_spotting"), *files)
    assert (result.exit_code, result.stderr) == (0, "")
    told = [line.rsplit(": ", 1) for line in result.stdout.splitlines()]
    assert [file for file, _ in told] == list(map(str, files))
    assert {label for _, label in told} <= set(LABELS)


def test_predict_prints_a_label_per_slot(
    finished: Callable[[str], Path], stand_in: StandIn
) -> None:
    result = invoke("predict", finished("intents"), stand_in.clip("validation", 0))
    assert result.exit_code == 0
    found = re.fullmatch(r".*0\.wav: action=(\w+), object=(\w+)\n", result.stdout)
    assert found is not None, result.stdout
    assert found[1] in SLOTS["action"]
    assert found[2] in SLOTS["object"]


def test_predict_agrees_with_pytorch_on_a_text(
    finished: Callable[[str], Path], stand_in: StandIn
) -> None:
    import soundfile
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

    output, clip = finished("speech_recognition"), stand_in.clip("validation", 0)
    result = invoke("predict", output, clip, "--json")
    assert result.exit_code == 0
    waveform, rate = soundfile.read(clip, dtype="float32")
    inputs = AutoFeatureExtractor.from_pretrained(output)(
        waveform, sampling_rate=rate, return_tensors="pt"
    )
    with torch.no_grad():
        logits = AutoModelForCTC.from_pretrained(output).eval()(**inputs).logits
    text = AutoTokenizer.from_pretrained(output).decode(logits[0].argmax(-1))
    assert json.loads(result.stdout) == {"file": str(clip), "prediction": text}
    assert text


def test_predict_json_has_a_line_per_file(
    finished: Callable[[str], Path], stand_in: StandIn
) -> None:
    files = [stand_in.clip("validation", number) for number in range(3)]
    result = invoke("predict", finished("intents"), *files, "--json")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["file"] for line in told] == list(map(str, files))
    assert all(set(line["prediction"]) == set(SLOTS) for line in told)


def test_predict_goes_on_past_files_it_cannot_use(
    finished: Callable[[str], Path], stand_in: StandIn
) -> None:
    good, empty, gone = (stand_in.clip("validation", number) for number in range(3))
    empty.write_bytes(b"")
    gone.unlink()
    result = invoke("predict", finished("keyword_spotting"), empty, gone, good)
    assert result.exit_code == 2
    assert result.stderr == f"error: {empty}: empty\nerror: {gone}: missing\n"
    assert result.stdout.startswith(f"{good}: w")


def test_predict_wants_the_directory_of_a_run(
    finished: Callable[[str], Path], stand_in: StandIn, tmp_path: Path
) -> None:
    clip = stand_in.clip("validation", 0)
    result = invoke("predict", stand_in.root, clip)
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {stand_in.root}: no onnx/model.onnx in it: not the directory of a finished run\n",
    )
    output = Path(shutil.copytree(finished("keyword_spotting"), tmp_path / "out"))
    (output / "onnx/model.onnx").write_bytes(b"not a model")
    result = invoke("predict", output, clip)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {output}/onnx/model.onnx: ONNX Runtime cannot load it")
    assert len(result.stderr.splitlines()) == 1


# Checking ------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", STAND_INS)
def test_check_passes_a_good_recipe(stand_ins: Callable[[str], Path], name: str) -> None:
    recipe = stand_ins(name) / "recipe.yaml"
    result = invoke("check", recipe)
    assert (result.exit_code, result.output) == (0, f"{recipe}: ok\n")


@pytest.mark.usefixtures("no_network")
def test_check_offline_says_what_it_could_not_check(stand_in: StandIn) -> None:
    result = invoke(
        "check", stand_in.recipe, "--offline",
        "--set", "model.source=superb/wav2vec2-base-superb-ks",
        "--set", "calibration.source={kind: speechcommands, root: nowhere, subset: training}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "not checked: model superb/wav2vec2-base-superb-ks: on the Hub",
        "not checked: calibration: its data are not on this machine",
        f"{stand_in.recipe}: ok",
    ]


def test_check_asks_the_hub_unless_offline(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    asked: list[str] = []

    def unreachable(self: HfApi, repo_id: str, **options: Any) -> None:
        asked.append(repo_id)
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    result = invoke("check", stand_in.recipe, "--set", "model.source=owner/name")
    assert (result.exit_code, asked) == (2, ["owner/name"])
    assert result.stderr == (
        "error: owner/name: not found on the Hub (ConnectionError): check the name and the "
        "network, or pass --offline\n"
    )


def spoil_nothing_there(stand_in: StandIn) -> list[str]:
    content = stand_in.content()
    content["model"]["source"] = "gone"
    content["calibration"]["source"]["path"] = "gone.jsonl"
    content["validation"]["source"] = {"kind": "folder", "path": "gone"}
    stand_in.write(content)
    root = stand_in.root
    return [
        f"{stand_in.recipe}: model.source: gone: no such directory, and not a Hub id (owner/name)",
        f"{stand_in.recipe}: calibration.source: {root}/gone.jsonl: no such manifest",
        f"{stand_in.recipe}: validation.source: {root}/gone: no such directory",
    ]


def spoil_audio(stand_in: StandIn) -> list[str]:
    for number in (3, 4):
        stand_in.clip("validation", number).unlink()
    return [
        f"{stand_in.recipe}: validation.source: 2 audio files are missing, "
        "the first validation/3.wav"
    ]


def spoil_overlap(stand_in: StandIn) -> list[str]:
    shutil.copy(stand_in.clip("calibration", 0), stand_in.clip("validation", 1))
    return [
        "calibration and validation share 1 clip: calibration/0.wav = validation/1.wav; "
        "validate on clips that the heads were not chosen on"
    ]


def spoil_samples(stand_in: StandIn) -> list[str]:
    content = stand_in.content()
    content["calibration"]["samples"] = 200
    stand_in.write(content)
    return [f"{stand_in.recipe}: calibration.samples: 200 asked for, but there are 20 clips"]


@pytest.mark.parametrize("spoil", [spoil_nothing_there, spoil_audio, spoil_overlap, spoil_samples])
def test_check_reports_faults(stand_in: StandIn, spoil: Callable[[StandIn], list[str]]) -> None:
    faults = spoil(stand_in)
    result = invoke("check", stand_in.recipe)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {fault}" for fault in faults]
    assert result.stdout == ""


# Everything else -----------------------------------------------------------------------------


def test_every_command_and_option_is_explained() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        text = invoke(name, "--help").stdout
        for parameter in command.params:
            if getattr(parameter, "help", None) is None:
                assert parameter.name is not None
                assert parameter.name.upper() in text, (name, parameter.name)
    assert set(main.commands) == {"run", "check", "schema", "methods", "predict"}


def test_methods_lists_every_method_with_its_source_and_cost() -> None:
    from hibprune.attribution import METHODS

    lines = invoke("methods").stdout.splitlines()
    assert len(lines) == 3 * len(METHODS)
    assert [line.split()[0] for line in lines[::3]] == [method.name() for method in METHODS]


def test_the_version_is_the_packages() -> None:
    assert invoke("--version").stdout == f"hibprune, version {hibprune.__version__}\n"
