"""`hibprune predict`: what a deployer sees."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from commands import invoke
from standin import LABELS, SLOTS, StandIn


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
