"""A run ends in a list of measured variants; every figure is found again outside of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors
import soundfile
import torch
from commands import invoke
from manifests import body_of, parsed
from standin import SAMPLING_RATE, StandIn
from transformers import AutoModelForAudioClassification, AutoProcessor
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from hibprune.records.manifest import Manifest
from hibprune.records.statistics import error_change_interval

ALL = (
    "--quiet", "--set", "export.variants=[fp32,int8,fp16]", "--set", "benchmark.rivals=true",
    "--set", "attribution={method: magnitude}", "--set", "export.batches=[1]",
)  # fmt: skip
PLANNED = [
    ("original", None, "fp32"),
    ("original-int8", "original", "int8"),
    ("pruned", "original", "fp32"),
    ("pruned-int8", "pruned", "int8"),
    ("pruned-fp16", "pruned", "fp16"),
]
LEFT = {"pruned": "", "pruned-int8": "_quantized", "pruned-fp16": "_fp16"}
"""Variants whose graphs are in the directory, and what is added to a graph's name."""
NEW_TOKENS = 12


def spotter_of_many_words(stand_in: StandIn) -> None:
    """Let the untrained model say different words of different clips, by moving its biases."""
    model = AutoModelForAudioClassification.from_pretrained(stand_in.model)
    with torch.no_grad():
        clips = [torch.tensor(heard(stand_in, row)) for row in stand_in.rows("calibration")]
        mean = torch.cat([model(clip).logits for clip in clips]).mean(0)
        model.classifier.bias -= mean
    model.save_pretrained(stand_in.model)


def heard(stand_in: StandIn, row: dict[str, str]) -> np.ndarray:
    """A clip as wav2vec2 takes it: of mean 0 and variance 1."""
    sound, rate = soundfile.read(stand_in.root / row["audio"], dtype="float32")
    assert rate == SAMPLING_RATE
    return ((sound - sound.mean()) / np.sqrt(sound.var() + 1e-7))[None].astype(np.float32)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def lines_of(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"predictions/{name}.jsonl").open()]


class Finished:
    """A task and the directory of its run."""

    def __init__(self, stand_in: StandIn, output: Path) -> None:
        self.stand_in, self.output = stand_in, output
        self.manifest = Manifest.model_validate_json((output / "manifest.json").read_text())
        lines = lines_of(output, "original")
        by_name = {row["audio"]: row for row in stand_in.rows("validation")}
        self.rows = [by_name[line["id"]] for line in lines]
        """Those measured, in the order of the predictions."""


@pytest.fixture(scope="module")
def spotter(stand_ins: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root = tmp_path_factory.mktemp("variants")
    stand_in = StandIn(Path(shutil.copytree(stand_ins("keyword_spotting"), root / "task")))
    spotter_of_many_words(stand_in)
    result = invoke("run", stand_in.recipe, "--output", root / "out", *ALL)
    assert result.exit_code == 0, result.output or result.exception
    return Finished(stand_in, root / "out")


@pytest.fixture(scope="module")
def recogniser(stand_ins: Callable[[str], Path], recogniser_in_all_precisions: Path) -> Finished:
    return Finished(StandIn(stand_ins("encoder_decoder")), recogniser_in_all_precisions)


@pytest.fixture(params=["spotter", "recogniser"])
def finished_task(request: pytest.FixtureRequest) -> Finished:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Finished)
    return found


# What every task's list has ------------------------------------------------------------------


def test_the_list_is_of_originals_and_pruned_ones(finished_task: Finished) -> None:
    variants = finished_task.manifest.variants
    assert [(one.name, one.parent, one.precision) for one in variants] == PLANNED
    assert finished_task.manifest.schema_version == 2
    assert finished_task.manifest.missing == ()
    removed = f"{finished_task.manifest.heads.removed_count} heads removed"
    for one in variants:
        assert (removed in one.done) == one.name.startswith("pruned")
        lower = f"converted to {one.precision}"
        assert (lower in one.done) == (one.precision != "fp32")


def test_graphs_have_the_names_that_optimum_looks_for(
    spotter: Finished, recogniser: Finished
) -> None:
    for task, graphs in (
        (spotter, ["model"]),
        (recogniser, ["encoder_model", "decoder_model_merged"]),
    ):
        there = {path.name for path in (task.output / "onnx").glob("*.onnx")}
        assert there == {f"{graph}{added}.onnx" for graph in graphs for added in LEFT.values()}
        for one in task.manifest.variants:
            paths = [f"onnx/{graph}{LEFT.get(one.name, '')}.onnx" for graph in graphs]
            assert [file.path for file in one.files] == (
                paths if one.name in LEFT else [None] * len(graphs)
            )


def test_sizes_and_digests_are_those_of_the_files(finished_task: Finished) -> None:
    manifest, output = finished_task.manifest, finished_task.output
    for one in manifest.variants:
        assert one.size_bytes == sum(file.size_bytes for file in one.files)
        for file in one.files:
            if file.path is not None:
                content = (output / file.path).read_bytes()
                assert file.size_bytes == len(content)
                assert file.sha256 == hashlib.sha256(content).hexdigest()
                assert manifest.files[file.path] == file.sha256
    sizes = {one.name: one.size_bytes for one in manifest.variants}
    assert sizes["original-int8"] < sizes["original"]
    assert max(sizes["pruned-int8"], sizes["pruned-fp16"]) < sizes["pruned"] < sizes["original"]


def test_rivals_are_measured_and_not_left(finished_task: Finished) -> None:
    names = {path.stem for path in (finished_task.output / "predictions").iterdir()}
    assert names == {name for name, *_ in PLANNED}
    assert not any("original" in path.name for path in (finished_task.output / "onnx").iterdir())
    assert not list(finished_task.output.rglob("*.partial*"))
    assert finished_task.manifest.variant("original-int8").metric.n == len(finished_task.rows)


def test_parameters_are_those_of_the_weights(finished_task: Finished) -> None:
    counts = {}
    for name, place in (
        ("original", finished_task.stand_in.model),
        ("pruned", finished_task.output),
    ):
        with safetensors.safe_open(place / "model.safetensors", "np") as file:
            counts[name] = sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118
    for one in finished_task.manifest.variants:
        assert one.parameters == counts[one.name.partition("-")[0]], one.name


def test_multiply_adds_fall_with_the_heads_alone(spotter: Finished) -> None:
    """Queries, keys, values and outputs of a head, and its scores and sums, at every frame."""
    macs = {one.name: one.macs for one in spotter.manifest.variants}
    assert macs["original"] == macs["original-int8"]
    assert macs["pruned"] == macs["pruned-int8"] == macs["pruned-fp16"]
    config = json.loads((spotter.stand_in.model / "config.json").read_text())
    frames, width = round(0.5 * SAMPLING_RATE), config["hidden_size"]
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        frames = (frames - kernel) // stride + 1
    head = width // config["num_attention_heads"]
    saved = 4 * frames * width * head + 2 * frames**2 * head
    assert macs["original"] - macs["pruned"] == spotter.manifest.heads.removed_count * saved


def test_the_change_is_that_of_the_same_clips(finished_task: Finished) -> None:
    manifest, output = finished_task.manifest, finished_task.output
    before = lines_of(output, "original")
    counted = [line["counted"] for line in before]
    assert manifest.original.change is None
    for one in manifest.variants[1:]:
        after = lines_of(output, one.name)
        assert [line["id"] for line in after] == [line["id"] for line in before]
        assert [line["counted"] for line in after] == counted
        differences = [b["errors"] - a["errors"] for a, b in zip(before, after, strict=True)]
        low, high = error_change_interval(differences, counted)
        wanted = (-high, -low) if manifest.metric.higher_is_better else (low, high)
        assert one.change == pytest.approx(wanted)
        difference = one.metric.value - manifest.original.metric.value
        assert wanted[0] <= difference + 1e-9
        assert difference <= wanted[1] + 1e-9


def test_agreement_is_the_share_of_the_same_answers(finished_task: Finished) -> None:
    manifest, output = finished_task.manifest, finished_task.output
    for one in manifest.variants:
        if one.precision == "fp32":
            assert one.agreement is None
            assert one.parity is not None
            assert 0 < one.parity.max_relative_diff <= one.parity.tolerance
            continue
        assert one.parity is None
        assert one.parent is not None
        assert one.agreement is not None
        said, wanted = (
            [line["prediction"] for line in lines_of(output, name)]
            for name in (one.name, one.parent)
        )
        same = sum(a == b for a, b in zip(said, wanted, strict=True))
        assert one.agreement.n == len(said)
        assert one.agreement.equal == pytest.approx(same / len(said))


def test_all_are_timed_at_every_length_as_often(finished_task: Finished) -> None:
    manifest = finished_task.manifest
    record = json.loads((finished_task.output / "steps/benchmark.json").read_text())
    names = [name for name, *_ in PLANNED]
    rounds = {2, 3} & {one.repetitions for one in manifest.original.latency}
    assert len(rounds) == 1
    for place, latency in enumerate(record["result"]["latencies"]):
        for times in latency["times"].values():
            assert list(times) == names
            assert {len(own) for own in times.values()} == rounds
        whole = next(iter(latency["times"].values()))
        for name in names:
            told = manifest.variant(name).latency[place]
            assert told.length.seconds == latency["seconds"] == 0.5
            assert {told.repetitions} == rounds
            assert told.times.p50 == pytest.approx(np.median(whole[name]))
            ratio = np.median(whole["original"]) / np.median(whole[name])
            assert told.ratio == pytest.approx(ratio)
            low, high = told.ratio_interval
            assert low <= told.ratio <= high


# What single tasks say -----------------------------------------------------------------------


def logits_of(path: Path, task: Finished) -> np.ndarray:
    """Of every validation clip, one after the other."""
    run = session(path).run
    return np.concatenate(
        [run(["logits"], {"input_values": heard(task.stand_in, row)})[0] for row in task.rows]
    )


def require_said(task: Finished, name: str, logits: np.ndarray) -> None:
    """See that a spotter's predictions and accuracy are those of these logits."""
    labels = json.loads((task.output / "config.json").read_text())["id2label"]
    said = [labels[str(number)] for number in logits.argmax(-1)]
    right = [label == row["label"] for label, row in zip(said, task.rows, strict=True)]
    for line, row, label, is_right in zip(
        lines_of(task.output, name), task.rows, said, right, strict=True
    ):
        assert line == {
            "id": row["audio"],
            "reference": row["label"],
            "prediction": label,
            "errors": float(not is_right),
            "counted": 1.0,
        }
    metric = task.manifest.variant(name).metric
    assert (metric.metric, metric.n) == ("accuracy", len(said))
    assert metric.value == pytest.approx(sum(right) / len(right))
    assert len(set(said)) > 2, "a constant answer would show nothing"


@pytest.mark.parametrize("name", LEFT)
def test_a_spotters_figures_are_those_of_its_file(spotter: Finished, name: str) -> None:
    path = spotter.output / f"onnx/model{LEFT[name]}.onnx"
    logits = logits_of(path, spotter)
    require_said(spotter, name, logits)
    variant = spotter.manifest.variant(name)
    if variant.agreement is not None:
        whole = logits_of(spotter.output / "onnx/model.onnx", spotter)
        difference = np.abs(logits - whole)[:4].max()
        assert variant.agreement.max_abs_diff == pytest.approx(difference, rel=1e-4)
        share = difference / np.abs(whole[:4]).max()
        assert variant.agreement.relative_diff == pytest.approx(share, rel=1e-4)
        assert difference > 0


def test_the_originals_figures_are_those_of_the_checkpoint(spotter: Finished) -> None:
    model = AutoModelForAudioClassification.from_pretrained(spotter.stand_in.model).eval()
    with torch.no_grad():
        clips = [torch.tensor(heard(spotter.stand_in, row)) for row in spotter.rows]
        require_said(spotter, "original", np.concatenate([model(one).logits for one in clips]))


def transcripts_of(task: Finished, added: str) -> list[str]:
    """Greedy decoding by hand: of every clip the encoder once, the decoder token by token."""
    onnx = task.output / "onnx"
    encoder, decoder = (
        session(onnx / f"{graph}{added}.onnx")
        for graph in ("encoder_model", "decoder_model_merged")
    )
    settings = json.loads((task.output / "generation_config.json").read_text())
    processor = AutoProcessor.from_pretrained(task.output)
    outputs = [one.name for one in decoder.get_outputs()]
    nothing = {
        one.name: np.zeros([n if isinstance(n, int) else 1 for n in one.shape], np.float32)
        for one in decoder.get_inputs()
        if one.name.startswith("past")
    }
    texts = []
    for row in task.rows:
        sound, rate = soundfile.read(task.stand_in.root / row["audio"], dtype="float32")
        features = processor(sound, sampling_rate=rate, return_tensors="np").input_features
        (states,) = encoder.run(["last_hidden_state"], {"input_features": features})
        tokens = [settings["decoder_start_token_id"], settings["no_timestamps_token_id"]]
        feed, said = list(tokens), list[int]()
        past = dict(nothing)
        while len(said) < NEW_TOKENS:
            given = {
                "input_ids": np.array([feed], np.int64),
                "encoder_hidden_states": states,
                "use_cache_branch": np.array([bool(said)]),
                **past,
            }
            found = dict(zip(outputs, decoder.run(None, given), strict=True))
            for name, value in found.items():
                # What comes of the encoder is made in the first step alone.
                if name.startswith("present") and not (said and ".encoder." in name):
                    past[name.replace("present", "past_key_values")] = value
            logits = found["logits"][0, -1]
            logits[settings["suppress_tokens"]] = -np.inf
            feed = [int(logits.argmax())]
            if feed == [settings["eos_token_id"]]:
                break
            said += feed
        texts.append(processor.tokenizer.decode(said, skip_special_tokens=True).strip())
    return texts


def edit_distance(wanted: list[str], found: list[str]) -> int:
    row = list(range(len(found) + 1))
    for number, word in enumerate(wanted, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(found, start=1):
            best = min(row[place] + 1, row[place - 1] + 1, diagonal + (word != other))
            diagonal, row[place] = row[place], best
    return row[-1]


@pytest.mark.parametrize("name", LEFT)
def test_a_recognisers_figures_are_those_of_its_files(recogniser: Finished, name: str) -> None:
    texts, words = transcripts_of(recogniser, LEFT[name]), EnglishTextNormalizer({})
    lines = lines_of(recogniser.output, name)
    assert [line["prediction"] for line in lines] == texts
    assert [line["reference"] for line in lines] == [row["text"] for row in recogniser.rows]
    assert len(set(texts)) > 2, "a constant answer would show nothing"
    pairs = [
        (words(row["text"]).split(), words(text).split())
        for row, text in zip(recogniser.rows, texts, strict=True)
    ]
    errors = [edit_distance(*pair) for pair in pairs]
    counted = [len(wanted) for wanted, _ in pairs]
    assert [line["errors"] for line in lines] == errors
    assert [line["counted"] for line in lines] == counted
    metric = recogniser.manifest.variant(name).metric
    assert (metric.metric, metric.n, metric.higher_is_better) == ("WER", len(texts), False)
    assert metric.value == pytest.approx(sum(errors) / sum(counted))


def loaded_as_the_card_says(task: Finished, precision: str) -> Any:
    """What its lines on a precision load, run from inside the directory."""
    blocks = [
        token.content
        for token in parsed(body_of((task.output / "README.md").read_text()))
        if token.info == "python" and f"# {precision}" in token.content
    ]
    (block,) = blocks
    imported, *calls = block.split("\nmodel = ")
    (call,) = [call for call in calls if f"# {precision}" in call]
    found: dict[str, Any] = {}
    with contextlib.chdir(task.output):
        exec(f"{imported}\nmodel = {call}", found)
    return found["model"]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_the_card_tells_how_to_load_a_lower_precision(
    spotter: Finished, recogniser: Finished, precision: str
) -> None:
    """Through Optimum, which then says what was measured."""
    model = loaded_as_the_card_says(spotter, precision)
    for row, line in zip(
        spotter.rows, lines_of(spotter.output, f"pruned-{precision}"), strict=True
    ):
        logits = model(input_values=torch.tensor(heard(spotter.stand_in, row))).logits
        assert model.config.id2label[int(logits.argmax(-1))] == line["prediction"]
    model = loaded_as_the_card_says(recogniser, precision)
    processor = AutoProcessor.from_pretrained(recogniser.output)
    for line in lines_of(recogniser.output, f"pruned-{precision}")[:3]:
        sound, rate = soundfile.read(recogniser.stand_in.root / line["id"], dtype="float32")
        inputs = processor(sound, sampling_rate=rate, return_tensors="pt")
        (text,) = processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)
        assert text.strip() == line["prediction"]
