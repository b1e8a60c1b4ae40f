"""`hibprune predict`: what a deployer sees."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile
from commands import faults, invoke
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


# Variants ------------------------------------------------------------------------------------


def predicted(directory: Path, clip: Path, *options: str) -> str:
    result = invoke("predict", directory, clip, "--json", *options)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return str(json.loads(result.stdout)["prediction"])


def by_onnxruntime(directory: Path, graph: str, clip: Path) -> str:
    """What the graph of that name says, run as anyone would."""
    from transformers import AutoFeatureExtractor

    waveform, rate = soundfile.read(clip, dtype="float32")
    inputs = AutoFeatureExtractor.from_pretrained(directory)(
        waveform, sampling_rate=rate, return_tensors="np"
    )
    session = onnxruntime.InferenceSession(directory / "onnx" / graph)
    (logits,) = session.run(["logits"], dict(inputs))
    labels = json.loads((directory / "config.json").read_text())["id2label"]
    return str(labels[str(int(np.argmax(logits)))])


@pytest.fixture
def told_apart(finished_in_int8: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished run whose int8 graph says of everything the last label, as fp32 never does."""
    import onnx
    from onnx import helper, numpy_helper

    output = Path(shutil.copytree(finished_in_int8("keyword_spotting"), tmp_path / "out"))
    logits = np.zeros((1, len(LABELS)), np.float32)
    logits[0, -1] = 1
    graph = helper.make_graph(
        [helper.make_node("Identity", ["constant"], ["logits"])],
        "graph",
        [helper.make_tensor_value_info("input_values", onnx.TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(logits, "constant")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, output / "onnx/model_quantized.onnx")
    return output


def test_predict_takes_the_variant_that_is_named(told_apart: Path, stand_in: StandIn) -> None:
    labels = json.loads((told_apart / "config.json").read_text())["id2label"]
    last = labels[str(len(LABELS) - 1)]
    clips = [stand_in.clip("validation", number) for number in range(10)]
    clip, pruned = next(
        (clip, said)
        for clip in clips
        if (said := by_onnxruntime(told_apart, "model.onnx", clip)) != last
    )
    assert [predicted(told_apart, clip, "--variant", name) for name in ("pruned-int8", "int8")] == [
        last,
        last,
    ]
    for options in ((), ("--variant", "pruned"), ("--variant", "fp32")):
        assert predicted(told_apart, clip, *options) == pruned


def test_predict_agrees_with_onnxruntime_on_int8(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn
) -> None:
    output, clip = finished_in_int8("keyword_spotting"), stand_in.clip("validation", 0)
    expected = by_onnxruntime(output, "model_quantized.onnx", clip)
    assert predicted(output, clip, "--variant", "int8") == expected


@pytest.mark.parametrize(
    ("variant", "fault"),
    [
        ("fp16", "pruned-fp16 is not in it: add fp16 to export.variants and run again"),
        ("pruned-fp16", "pruned-fp16 is not in it: add fp16 to export.variants and run again"),
        ("pruned-in8", "no variant 'pruned-in8' (did you mean 'pruned-int8'?)"),
        ("original", "original was measured for comparison and is not in it"),
        ("original-int8", "original-int8 was measured for comparison and is not in it"),
        ("INT4", "no variant 'INT4'"),
        ("../../secret", "no variant '../../secret'"),
        ("", "no variant ''"),
    ],
)
def test_a_variant_that_is_not_there_is_one_line_that_lists_those_there_are(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn, variant: str, fault: str
) -> None:
    output, clip = finished_in_int8("keyword_spotting"), stand_in.clip("validation", 0)
    assert faults(invoke("predict", output, clip, "--variant", variant)) == [
        f"{output}: {fault}; there are: pruned, pruned-int8"
    ]


def test_a_variant_that_could_not_be_made_is_told_with_its_reason(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished_in_int8("keyword_spotting"), tmp_path / "out"))
    manifest = json.loads((output / "manifest.json").read_text())
    manifest["variants"] = [one for one in manifest["variants"] if one["name"] != "pruned-int8"]
    reason = f"a graph that \x1b[2Jcannot{'!' * 999}"
    manifest["missing"] = [{"name": "pruned-int8", "precision": "int8", "reason": reason}]
    (output / "manifest.json").write_text(json.dumps(manifest))
    # What an earlier recipe may have left is not taken for it.
    assert (output / "onnx/model_quantized.onnx").exists()
    (fault,) = faults(invoke("predict", output, stand_in.clip("validation", 0), "--variant=int8"))
    assert fault.startswith(f"{output}: pruned-int8 could not be made (a graph that �[2Jcannot!!!")
    assert fault.endswith("!…); there are: pruned")


def test_a_manifest_that_is_none_is_one_line(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(finished_in_int8("keyword_spotting"), tmp_path / "out"))
    (output / "manifest.json").write_text('{"schema_version": 1}')
    clip = stand_in.clip("validation", 0)
    assert faults(invoke("predict", output, clip, "--variant", "int8")) == [
        f"{output}/manifest.json: not of a run by this version of hibprune: run it again"
    ]


def test_a_broken_graph_is_named_as_it_lies_there(told_apart: Path, stand_in: StandIn) -> None:
    (told_apart / "onnx/model_quantized.onnx").write_bytes(b"not a model")
    clip = stand_in.clip("validation", 0)
    (fault,) = faults(invoke("predict", told_apart, clip, "--variant", "int8"))
    assert fault.startswith(f"{told_apart}/onnx/model_quantized.onnx: ONNX Runtime cannot load it")
    (told_apart / "onnx/model_quantized.onnx").unlink()
    assert faults(invoke("predict", told_apart, clip, "--variant", "int8")) == [
        f"{told_apart}: pruned-int8 was made, but its graph is gone: copy it again or run again; "
        "there are: pruned"
    ]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ((), "pruned is not in it"),
        (("--variant", "fp16"), "pruned-fp16 is not in it"),
        (("--variant", "in8"), "no variant 'in8' (did you mean 'int8'?)"),
        (("--variant", "original"), "no variant 'original'"),
    ],
)
@pytest.mark.parametrize("beside", [(), ("recipe.yaml",)])
def test_a_copy_of_one_variant_lists_that(
    finished_in_int8: Callable[[str], Path],
    stand_in: StandIn,
    tmp_path: Path,
    options: tuple[str, ...],
    fault: str,
    beside: tuple[str, ...],
) -> None:
    output, copied = finished_in_int8("keyword_spotting"), tmp_path / "copied"
    (copied / "onnx").mkdir(parents=True)
    for name in ("config.json", "preprocessor_config.json", "onnx/model_quantized.onnx", *beside):
        shutil.copy(output / name, copied / name)
    clip = stand_in.clip("validation", 0)
    assert faults(invoke("predict", copied, clip, *options)) == [
        f"{copied}: {fault}; there are: pruned-int8"
    ]
    assert predicted(copied, clip, "--variant", "int8") == predicted(
        output, clip, "--variant", "int8"
    )


def test_both_graphs_of_a_decoder_are_those_of_the_variant(
    recogniser_in_all_precisions: Path, stand_ins: Callable[[str], Path]
) -> None:
    output = recogniser_in_all_precisions
    manifest = json.loads((output / "manifest.json").read_text())
    assert "pruned-int8" in {variant["name"] for variant in manifest["variants"]}
    lines = (output / "predictions/pruned-int8.jsonl").read_text().splitlines()
    said = {entry["id"]: entry["prediction"] for entry in map(json.loads, lines)}
    clip, text = next(iter(said.items()))
    place = stand_ins("encoder_decoder") / clip
    assert predicted(output, place, "--variant", "int8") == text
