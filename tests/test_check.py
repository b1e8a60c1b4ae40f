"""`hibprune check`: every fault that can be found without running, and no network unasked."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import Result
from commands import invoke
from standin import LABELS, STAND_INS, StandIn

from hibprune.stages.load import load
from hibprune.stages.sources import open_recipe


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
    assert (result.exit_code, result.stderr) == (0, "")
    calibration, validation, removes, last = result.stdout.splitlines()
    medium = "texts" if name == "text_classification" else "clips"
    assert calibration.startswith(f"calibration: 20 {medium}")
    assert calibration.endswith(", 20 drawn, 0 skipped")
    assert ("20 of 20 clips decoded" in calibration) == (medium == "clips")
    total = 10 if name.startswith("encoder_decoder") else 30
    assert (f"{min(20, total)} of {total} clips decoded" in validation) == (medium == "clips")
    assert validation.startswith(f"validation: {total} {medium}")
    # Of two layers of four heads.
    assert removes == "would remove 3 of 8 heads of the encoder (global)"
    assert last == f"{recipe}: ok"


@pytest.mark.usefixtures("no_network")
def test_check_counts_clips_classes_hours_and_what_is_left_out(stand_in: StandIn) -> None:
    """Against the lengths as written, and the labels as counted by hand."""
    seconds = sum(soundfile.info(stand_in.clip("validation", n)).duration for n in range(30))
    lost = soundfile.info(stand_in.clip("validation", 4)).duration
    data = stand_in.clip("validation", 4).read_bytes()
    stand_in.clip("validation", 4).write_bytes(data[:-1000])
    words = stand_in.root / "words"
    for number, label in enumerate(LABELS):
        (words / label).mkdir(parents=True)
        shutil.copy(stand_in.clip("calibration", number), words / label / f"{number}.Wav")
    (words / "w0" / "old.m4a").write_text("not read")
    folder = "calibration.source={kind: folder, path: words}"
    options = ("--set", folder, "--set", "calibration.samples=2")
    lenient = ("--set", "validation.max_unreadable=0.1")
    result = invoke("check", stand_in.recipe, *options, *lenient)
    assert (result.exit_code, result.stderr) == (0, "")
    calibration, why, validation, skipped, _, _ = result.stdout.splitlines()
    hours = sum(soundfile.info(path).duration for path in words.glob("*/*.Wav")) / 3600
    assert calibration == (
        f"calibration: {len(LABELS)} clips of {len(LABELS)} classes (1 each), "
        f"{len(LABELS)} of {len(LABELS)} clips decoded, {hours:.3g} hours, "
        "2 drawn, 0 skipped, 1 passed over"
    )
    assert why == (
        "  passed over (not a format that is read here: convert it to WAV or FLAC): w0/old.m4a"
    )
    assert validation.endswith(f", {(seconds - lost) / 3600:.3g} hours, 29 drawn, 1 skipped")
    assert skipped.startswith("  skipped validation/4.wav: truncated (")
    # Without leave to skip it is what would stop a run, in the same words.
    refused, run = (
        invoke(command, stand_in.recipe, *options, "--quiet" if command == "run" else "--offline")
        for command in ("check", "run")
    )
    assert refused.exit_code == run.exit_code == 2
    assert refused.stderr == run.stderr
    assert refused.stderr.startswith("error: validation: 1 of the first 5 clips cannot be used")


@pytest.mark.usefixtures("no_network")
def test_check_json_is_for_programs(stand_in: StandIn) -> None:
    for number in (4, 5):
        stand_in.clip("validation", number).write_bytes(b"<html>")
    lenient = ("--set", "validation.max_unreadable=0.1")
    result = invoke("check", stand_in.recipe, "--json", *lenient)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert list(report) == [
        "schema_version", "recipe", "ok", "faults", "not_checked", "removes", "data",
    ]  # fmt: skip
    assert (report["schema_version"], report["ok"], report["faults"]) == (1, True, [])
    calibration, validation = report["data"]
    counted = Counter(row["label"] for row in stand_in.rows("calibration"))
    assert calibration["classes"] == counted
    assert (calibration["use"], calibration["kind"], calibration["medium"]) == (
        "calibration", "manifest", "sound",
    )  # fmt: skip
    assert (validation["inputs"], validation["drawn"], validation["looked_at"]) == (30, 28, 30)
    assert (calibration["decoded"], validation["decoded"]) == (20, 20)
    assert validation["skipped"] == [
        {"id": f"validation/{number}.wav", "reason": "not audio that libsndfile can open"}
        for number in (4, 5)
    ]
    usage = invoke("check", "--help").stdout
    for key in (*report, *validation):
        assert key in usage, f"{key} is not told by --help"


@pytest.mark.parametrize("spoil", ["recipe", "data", "overlap"])
def test_check_json_tells_faults(stand_in: StandIn, spoil: str) -> None:
    if spoil == "recipe":
        stand_in.recipe.write_text("modle: 1\n")
    elif spoil == "data":
        (stand_in.root / "calibration.jsonl").unlink()
    else:
        spoil_overlap(stand_in)
    result = invoke("check", stand_in.recipe, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert not report["ok"]
    assert [f"error: {fault}" for fault in report["faults"]] == result.stderr.splitlines()
    assert report["faults"]


def test_a_look_at_more_clips_than_there_is_time_for(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hibprune.stages.check_data.MOST_LOOKED_AT", 12)
    report = json.loads(invoke("check", stand_in.recipe, "--json").stdout)
    assert [one["looked_at"] for one in report["data"]] == [12, 12]
    assert report["not_checked"] == [
        "calibration: 8 of 20 clips, those drawn last",
        "validation: 18 of 30 clips, those drawn last",
    ]


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{kind: speechcommands, root: ., subset: training}",
         "{root}/SpeechCommands/speech_commands_v0.01/validation_list.txt: not found; unpack "
         "http://download.tensorflow.org/data/speech_commands_v0.01.tar.gz in "
         "{root}/SpeechCommands/speech_commands_v0.01, or correct 'root'"),
        ("{kind: fluent, root: ., subset: train}",
         "fluent train: has slots and a text per clip, but the task needs one label per clip; "
         "choose another data source or task"),
        ("{kind: datasets, path: audiofolder}",
         "{root}/recipe.yaml: calibration.source: {root}/audiofolder: no such directory, and "
         "'audiofolder' is a loader of datasets, not a data set: give the path of the data, from "
         "the recipe's directory"),
    ],
)  # fmt: skip
def test_data_that_are_nowhere_are_a_fault_unless_offline(
    stand_in: StandIn, source: str, fault: str
) -> None:
    result = invoke("check", stand_in.recipe, "--set", f"calibration.source={source}")
    assert result.exit_code == 2
    assert result.stderr == f"error: {fault.replace('{root}', str(stand_in.root))}\n"


def test_check_asks_the_hub_for_data_sets(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    asked: list[str] = []

    def unreachable(self: HfApi, repo_id: str, **options: Any) -> None:
        asked.append(repo_id)
        if repo_id == "owner/gone":
            raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)

    def check(name: str, *options: str) -> Result:
        source = f"calibration.source={{kind: datasets, path: {name}}}"
        return invoke("check", stand_in.recipe, "--set", source, *options)

    gone = check("owner/gone")
    assert gone.exit_code == 2
    assert gone.stderr == (
        "error: owner/gone: not found on the Hub (ConnectionError): check the name and the "
        "network, or pass --offline\n"
    )
    there = check("owner/there")
    assert there.exit_code == 0
    assert there.stdout.splitlines()[2:] == [
        "not checked: calibration: its data come from the Hub when the recipe is run",
        f"{stand_in.recipe}: ok",
    ]
    assert asked == ["owner/gone", "owner/there"]
    unasked = check("owner/gone", "--offline")
    assert unasked.exit_code == 0
    assert "not checked: calibration: its data are not on this machine" in unasked.stdout
    assert asked == ["owner/gone", "owner/there"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda sound: sound * 0, "silent"),
        (lambda sound: np.where(sound > 0.2, np.nan, sound), "holds NaN or infinite values"),
        (lambda sound: np.where(sound > 0.2, np.inf, sound), "holds NaN or infinite values"),
        (lambda sound: sound * 1e20, "holds values up to "),
    ],
)
@pytest.mark.parametrize("model", ["model", "owner/name"])
def test_the_first_clips_are_decoded(
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[np.ndarray], np.ndarray],
    reason: str,
    model: str,
) -> None:
    """What headers do not tell stops a check as it stops a run; beyond the bound it is not seen."""
    options = ("--offline", f"--set=model.source={model}")
    path = stand_in.clip("validation", 3)
    sound, rate = soundfile.read(path)
    soundfile.write(path, spoil(sound), rate, subtype="FLOAT")
    result = invoke("check", stand_in.recipe, *options)
    assert result.exit_code == 2
    fault, *more = result.stderr.splitlines()
    assert fault.startswith(
        "error: validation: 1 of the first 4 clips cannot be used, more than max_unreadable "
        f"(0.01) allows: validation/3.wav: {reason}"
    )
    assert not more
    if model == "model":
        assert invoke("run", stand_in.recipe, "--quiet").stderr == result.stderr
    lenient = invoke("check", stand_in.recipe, *options, "--set=validation.max_unreadable=0.1")
    assert lenient.exit_code == 0, lenient.output
    assert ", 20 of 30 clips decoded," in lenient.stdout
    assert f"  skipped validation/3.wav: {reason}" in lenient.stdout
    # Only so many, and so many seconds: none of the clips is shorter than a quarter of one.
    for bound, decoded in (("MOST_DECODED", 3), ("MOST_SECONDS_DECODED", 0.8)):
        with monkeypatch.context() as patched:
            patched.setattr(f"hibprune.stages.check_data.{bound}", decoded)
            passed = invoke("check", stand_in.recipe, *options, "--json")
            assert passed.exit_code == 0, passed.output
            found = json.loads(passed.stdout)["data"][1]
            assert 0 < found["decoded"] <= 3
            assert found["skipped"] == []


@pytest.mark.parametrize(
    ("split", "fault"),
    [
        ("train", None),
        ("test[:10%]+train", None),
        ("all", None),
        ("validation", "no split 'validation'; its splits are train, test"),
        ("train+dev", "no split 'train+dev'; its splits are train, test"),
    ],
)
def test_check_asks_the_hub_for_splits(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, split: str, fault: str | None
) -> None:
    import datasets
    from huggingface_hub import HfApi

    asked: list[tuple[str, Any]] = []

    def splits(path: str, config_name: str | None = None, **options: Any) -> list[str]:
        asked.append((path, config_name))
        return ["train", "test"]

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, **options: None)
    monkeypatch.setattr(datasets, "get_dataset_split_names", splits)
    source = f"calibration.source={{kind: datasets, path: owner/set, name: en, split: '{split}'}}"
    assert invoke("check", stand_in.recipe, "--set", source, "--offline").exit_code == 0
    assert asked == []
    result = invoke("check", stand_in.recipe, "--set", source)
    assert asked == [("owner/set", "en")]
    if fault is None:
        assert result.exit_code == 0, result.output
        assert "not checked: calibration: its data come from the Hub" in result.stdout
    else:
        assert result.exit_code == 2
        assert result.stderr == f"error: owner/set: {fault}\n"


def test_a_model_on_the_hub_is_not_checked(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr(HfApi, "model_info", lambda self, name, **options: None)
    result = invoke("check", stand_in.recipe, "--set", "model.source=owner/name")
    assert result.exit_code == 0
    assert "not checked: model owner/name: on the Hub" in result.stdout


def test_thousands_of_clips_are_looked_at_in_seconds(stand_in: StandIn) -> None:
    """Most of the time goes into the model, and into clips of one size, which may be the same."""
    rows = []
    data = stand_in.clip("validation", 0).read_bytes()
    for number in range(3000):
        name = f"validation/many{number}.wav"
        (stand_in.root / name).write_bytes(data[:-4] + number.to_bytes(4, "little"))
        rows.append({"audio": name, "label": LABELS[number % len(LABELS)]})
    stand_in.write_rows("validation", rows)
    start = time.perf_counter()
    result = invoke("check", stand_in.recipe)
    assert time.perf_counter() - start < 10
    assert "validation: 3000 clips" in result.stdout


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("stranger", ["\x1b[2J", os.fsdecode(b"\xff")])
def test_check_prints_names_that_a_terminal_can_have(stand_in: StandIn, stranger: str) -> None:
    words = stand_in.root / "words"
    for number, label in enumerate(LABELS):
        (words / label).mkdir(parents=True)
        shutil.copy(stand_in.clip("calibration", number), words / label / f"{number}.wav")
    (words / "w0" / f"{stranger}.wav").write_text("not sound")
    (words / "w0" / f"{stranger}.m4a").write_text("not read")
    options = (
        "--set=calibration.source={kind: folder, path: words}", "--set=calibration.samples=1",
        "--set=calibration.max_unreadable=0.9",
    )  # fmt: skip
    for option in ((), ("--json",)):
        result = invoke("check", stand_in.recipe, *options, *option)
        assert result.exit_code == 0, result.output
        assert all(letter.isprintable() or letter == "\n" for letter in result.stdout)
    assert json.loads(result.stdout)["data"][0]["skipped"]


@pytest.mark.usefixtures("no_network")
def test_check_offline_says_what_it_could_not_check(stand_in: StandIn) -> None:
    result = invoke(
        "check", stand_in.recipe, "--offline",
        "--set", "model.source=superb/wav2vec2-base-superb-ks",
        "--set", "calibration.source={kind: speechcommands, root: nowhere, subset: training}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    validation, *lines = result.stdout.splitlines()
    assert validation.startswith("validation: 30 clips of ")
    assert lines == [
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


def test_a_run_that_misses_the_hub_names_no_option_it_does_not_have(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(repo_id: str, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    result = invoke("run", stand_in.recipe, "--set", "model.source=owner/name")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: owner/name: not a directory here and not to be had from the Hub "
        "(ConnectionError): check the name, the revision and the network\n"
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


def spoil_labels(stand_in: StandIn) -> list[str]:
    """Told once, and not of the loss that cannot be computed for want of them as well."""
    rows = [{**row, "label": row["label"].upper()} for row in stand_in.rows("validation")]
    stand_in.write_rows("validation", rows)
    return [
        "validation: validation/0.wav: the model has no label 'W0'; it knows w0, w1, w2, w3, w4"
    ]


def spoil_samples(stand_in: StandIn) -> list[str]:
    content = stand_in.content()
    content["calibration"]["samples"] = 200
    stand_in.write(content)
    return [f"{stand_in.recipe}: calibration.samples: 200 asked for, but there are 20 clips"]


@pytest.mark.parametrize(
    "spoil", [spoil_nothing_there, spoil_audio, spoil_labels, spoil_overlap, spoil_samples]
)
def test_check_reports_faults(stand_in: StandIn, spoil: Callable[[StandIn], list[str]]) -> None:
    faults = spoil(stand_in)
    result = invoke("check", stand_in.recipe)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [f"error: {fault}" for fault in faults]
    assert result.stdout == ""


def test_clips_that_a_run_passes_over_are_shared_with_none(stand_in: StandIn) -> None:
    """Broken links to one place, sound without samples, and files that are gone, in both sets."""
    for split in ("calibration", "validation"):
        stand_in.clip(split, 1).unlink()
        stand_in.clip(split, 1).symlink_to(stand_in.root / "gone.wav")
        soundfile.write(stand_in.clip(split, 2), np.zeros(0), 16_000)
        stand_in.clip(split, 3).unlink()
    options = [
        option
        for use in ("calibration", "validation")
        for option in ("--set", f"{use}.max_unreadable=0.5")
    ]
    options += ["--set", "calibration.samples=17"]
    checked = invoke("check", stand_in.recipe, *options)
    assert (checked.exit_code, checked.stderr) == (0, "")
    for split in ("calibration", "validation"):
        assert f"  skipped {split}/1.wav: missing\n" in checked.stdout
        assert f"  skipped {split}/2.wav: empty\n" in checked.stdout
        assert f"  skipped {split}/3.wav: missing\n" in checked.stdout
    assert ", 17 drawn, 3 skipped\n" in checked.stdout
    assert ", 27 drawn, 3 skipped\n" in checked.stdout
    material = load(open_recipe(stand_in.recipe, tuple(options[1::2])), torch.device("cpu"))
    for selection, number in ((material.calibration, 17), (material.validation, 27)):
        assert len(selection.utterances) == number
        assert {reason for _, reason in selection.skipped} == {"missing", "empty"}


def test_all_clips_that_a_run_draws_are_looked_at_for_overlap(stand_in: StandIn) -> None:
    """Those for repair, too, and those that take the place of what cannot be read."""
    for number in range(20):
        shutil.copy(stand_in.clip("calibration", number), stand_in.clip("validation", number))
    options = ["calibration.samples=10", "calibration.max_unreadable=0.5"]

    def shared() -> str:
        given = [part for option in options for part in ("--set", option)]
        faults = json.loads(invoke("check", stand_in.recipe, "--json", *given).stdout)["faults"]
        return str(faults[0]).removeprefix(f"{stand_in.recipe}: ").partition(": ")[0]

    assert shared() == "calibration and validation share 10 clips"
    options.append("calibration.repair_samples=15")
    assert shared() == "calibration and validation share 15 clips"
    for number in range(5):
        stand_in.clip("calibration", number).write_bytes(b"<html>")
    assert shared() == "calibration and validation share 15 clips"
    options.append("calibration.repair_samples=21")
    assert shared() == "calibration.repair_samples"


@pytest.mark.parametrize(
    ("budget", "removes"),
    [
        ("{fraction: 0.5}", ["4 of 8 heads of the encoder (global)"]),
        ("{fraction: 0.3, scope: layerwise}", ["2 of 8 heads of the encoder (layerwise)"]),
        ("{heads: 3, scope: layerwise}", ["6 of 8 heads of the encoder (layerwise)"]),
        ("{heads: 0, neurons: 0.5}", ["37 of 74 neurons of the feed-forwards (global)"]),
        ("{heads: 1, neurons: 0.5}",
         ["1 of 8 heads of the encoder (global)",
          "37 of 74 neurons of the feed-forwards (global)"]),
    ],
)  # fmt: skip
def test_check_says_what_would_go(stand_in: StandIn, budget: str, removes: list[str]) -> None:
    """Of two layers, each of four heads and 37 neurons."""
    given = ("--set", f"budget={budget}")
    said = invoke("check", stand_in.recipe, *given).stdout.splitlines()
    assert [line.removeprefix("would remove ") for line in said if " remove " in line] == removes
    assert (
        json.loads(invoke("check", stand_in.recipe, "--json", *given).stdout)["removes"] == removes
    )
