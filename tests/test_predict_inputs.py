"""`hibprune predict`: directories, manifests, scores, batches, and copies of the graphs alone."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from commands import faults, invoke
from standin import LABELS, SLOTS, StandIn
from transformers import AutoFeatureExtractor, AutoTokenizer

RATE = 16_000


def told(directory: Path, *arguments: object) -> list[dict[str, Any]]:
    """What `predict --json` prints, which must be all that it says."""
    result = invoke("predict", directory, *arguments, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def copied_graphs(directory: Path, target: Path) -> Path:
    """What a deployer takes along: `onnx/` and configuration files, and nothing of ours."""
    target.mkdir()
    shutil.copytree(directory / "onnx", target / "onnx")
    for path in directory.iterdir():
        if path.suffix in (".json", ".txt") and path.name != "manifest.json":
            shutil.copy(path, target)
    return target


def noise(path: Path, seconds: float, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * RATE))
    soundfile.write(path, drawn, RATE)
    return path


def logits_of(directory: Path, clip: Path) -> np.ndarray:
    """By the feature extractor and ONNX Runtime, as anyone would."""
    waveform, rate = soundfile.read(clip, dtype="float32")
    inputs = AutoFeatureExtractor.from_pretrained(directory)(
        waveform, sampling_rate=rate, return_tensors="np"
    )
    session = onnxruntime.InferenceSession(directory / "onnx/model.onnx")
    return np.asarray(session.run(["logits"], dict(inputs))[0][0])


def test_a_directory_and_manifests_stand_for_their_clips(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    spotter, top = finished("keyword_spotting"), tmp_path / "clips"
    clips = [noise(top / name, 0.3, seed) for seed, name in enumerate(["b.wav", "a/c.FLAC"])]
    (top / "notes.txt").write_text("no sound")
    single = {one["file"]: one["prediction"] for one in told(spotter, *clips)}
    # Sorted by path, and hidden files or other formats are told of, not taken for clips.
    assert told(spotter, top) == [
        {"file": str(clip), "prediction": single[str(clip)]} for clip in reversed(clips)
    ]
    listed = tmp_path / "clips.jsonl"
    listed.write_text("".join(
        json.dumps({"audio": f"clips/{name}"}) + "\n" for name in ("b.wav", "a/c.FLAC")
    ))  # fmt: skip
    table = top / "clips.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([["label", "audio"], ["none of ours", "b.wav"]])
    for argument, expected in ((listed, clips), (table, clips[:1])):
        assert [one["file"] for one in told(spotter, argument)] == list(map(str, expected))

    (top / ".hidden.wav").write_bytes(b"")
    (top / "song.m4a").write_bytes(b"")
    empty = tmp_path / "empty"
    empty.mkdir()
    broken, gone = tmp_path / "broken.jsonl", tmp_path / "gone.csv"
    broken.write_text('{"audio": "clips/b.wav"}\n{"sound": "x.wav"}\n')
    outside = tmp_path / "outside.jsonl"
    outside.write_text('{"audio": "../../etc/x.wav"}\n')
    result = invoke("predict", spotter, top, empty, broken, gone, outside, clips[0])
    lines = result.stderr.splitlines()
    assert [line for line in lines if line.startswith("note: ")] == [
        f"note: {top}/.hidden.wav: passed over: hidden, by a name with a dot in front",
        f"note: {top}/song.m4a: passed over: not a format that is read here: convert it to WAV "
        "or FLAC",
    ]
    told_faults = [line for line in lines if line.startswith("error: ")]
    assert [line.split(": ", 2)[1] for line in told_faults] == [
        str(empty), f"{broken}:2", str(gone), f"{outside}:1",
    ]  # fmt: skip
    assert result.exit_code == 2
    # There is no recipe whose keys could be set.
    assert told_faults[3] == (
        f"error: {outside}:1: '../../etc/x.wav' is no path inside {tmp_path}; put the manifest "
        "into a directory above it, or name the clips themselves"
    )
    # What can be answered is, in its order.
    assert [line.rsplit(": ", 1)[0] for line in result.stdout.splitlines()] == [
        str(clips[1]), str(clips[0]), str(clips[0]),
    ]  # fmt: skip


def test_a_manifest_of_texts_and_a_text_that_ends_like_one(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    listed = tmp_path / "texts.jsonl"
    listed.write_text('{"text": "bad but good"}\n{"text": "good but bad"}\n')
    classifier = finished("text_classification")
    given = told(classifier, listed, "the good film.csv")
    assert [(one["text"], one["prediction"]) for one in given] == [
        ("bad but good", "POSITIVE"), ("good but bad", "NEGATIVE"),
        ("the good film.csv", given[2]["prediction"]),
    ]  # fmt: skip


def test_scores_are_the_softmax_of_the_logits(
    finished: Callable[[str], Path], stand_in: StandIn
) -> None:
    clip = stand_in.clip("validation", 0)
    spotter, of_slots = finished("keyword_spotting"), finished("intents")
    (one,) = told(spotter, clip, "--scores")
    expected = torch.softmax(torch.from_numpy(logits_of(spotter, clip)), -1)
    assert one["scores"] == pytest.approx(
        dict(zip(LABELS, expected.tolist(), strict=True)), rel=1e-4
    )
    assert next(iter(one["scores"])) == one["prediction"]
    assert list(one["scores"].values()) == sorted(one["scores"].values(), reverse=True)
    line = invoke("predict", spotter, clip, "--scores").stdout
    best = one["scores"][one["prediction"]]
    assert line.startswith(f"{clip}: {one['prediction']} ({one['prediction']} {best:.3g}, ")

    (one,) = told(of_slots, clip, "--scores")
    logits, start = torch.from_numpy(logits_of(of_slots, clip)), 0
    for slot, labels in SLOTS.items():
        shares = torch.softmax(logits[start : start + len(labels)], -1)
        start += len(labels)
        expected_shares = dict(zip(labels, shares.tolist(), strict=True))
        assert one["scores"][slot] == pytest.approx(expected_shares, rel=1e-4)


def test_scores_of_a_transcript_are_its_tokens_if_its_graph_gives_logits(
    finished: Callable[[str], Path], stand_in: StandIn
) -> None:
    clip, recogniser = stand_in.clip("validation", 0), finished("speech_recognition")
    (one,) = told(recogniser, clip, "--scores")
    shares = torch.softmax(torch.from_numpy(logits_of(recogniser, clip)), -1).max(-1)
    tokenizer, expected, last = AutoTokenizer.from_pretrained(recogniser), [], None
    for number, share in zip(shares.indices.tolist(), shares.values.tolist(), strict=True):
        if number == last:
            expected[-1][1] = max(expected[-1][1], share)
        else:
            expected.append([tokenizer.convert_ids_to_tokens(number), share])
        last = number
    special = set(tokenizer.all_special_tokens)
    expected = [entry for entry in expected if entry[0] not in special]
    assert [token for token, _ in one["scores"]] == [token for token, _ in expected]
    assert [share for _, share in one["scores"]] == pytest.approx(
        [share for _, share in expected], rel=1e-4
    )
    whisper = finished("encoder_decoder")
    assert faults(invoke("predict", whisper, clip, "--scores")) == [
        f"{whisper}: its decoder gives out tokens, no probabilities: leave --scores out"
    ]


@pytest.mark.parametrize("name", ["keyword_spotting", "encoder_decoder", "text_classification"])
def test_answers_in_batches_are_those_of_single_inputs_in_their_order(
    finished: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    directory = finished(name)
    if name == "text_classification":
        inputs = ["bad but good", "a good film", "good but bad", "the plot was bad but lovely"]
    else:
        lengths = (0.3, 0.25, 0.3, 0.4, 0.3)
        inputs = [str(noise(tmp_path / f"{n}.wav", s, n)) for n, s in enumerate(lengths)]
    singly = told(directory, *inputs)
    for batch in (2, 100):
        assert told(directory, *inputs, "--batch", batch) == singly


def test_batches_are_refused_where_a_clip_s_answer_depends_on_the_others(
    finished_in_int8: Callable[[str], Path], stand_in: StandIn
) -> None:
    directory, clip = finished_in_int8("keyword_spotting"), stand_in.clip("validation", 0)
    asked = ("predict", directory, clip, "--variant", "int8", "--batch")
    (fault,) = faults(invoke(*asked, 2))
    assert fault.startswith("--batch: in int8 a clip's answer depends on the others in its batch")
    assert invoke(*asked, 1).exit_code == 0


@pytest.mark.parametrize(
    "name", ["keyword_spotting", "intents", "speech_recognition", "encoder_decoder",
             "encoder_decoder_of_languages", "text_classification"],
)  # fmt: skip
def test_a_copy_of_graphs_and_configuration_is_enough(
    finished: Callable[[str], Path], stand_ins: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    asked: object = "bad but great"
    if name != "text_classification":
        asked = StandIn(stand_ins(name)).clip("validation", 0)
    copied = copied_graphs(finished(name), tmp_path / "copied")
    assert not {"recipe.yaml", "manifest.json"} & {path.name for path in copied.iterdir()}
    assert told(copied, asked) == told(finished(name), asked)
    assert faults(invoke("predict", copied, asked, "--variant", "fp16")) == [
        f"{copied}: pruned-fp16 is not in it; there are: pruned"
    ]


def test_a_copy_whose_graph_does_not_say_its_task_wants_the_recipe(
    finished: Callable[[str], Path], stand_in: StandIn, tmp_path: Path
) -> None:
    import onnx

    copied = copied_graphs(finished("keyword_spotting"), tmp_path / "copied")
    graph, clip = onnx.load(copied / "onnx/model.onnx"), stand_in.clip("validation", 0)
    for value in ('{"kind": "no such task"}', "no JSON", "[]"):
        onnx.helper.set_model_props(graph, {"hibprune.task_settings": value})
        onnx.save(graph, copied / "onnx/model.onnx")
        assert faults(invoke("predict", copied, clip)) == [
            f"{copied}/onnx/model.onnx: does not say which task it is for, as those of hibprune "
            f"do: put the recipe.yaml of its run into {copied}"
        ]
    shutil.copy(finished("keyword_spotting") / "recipe.yaml", copied)
    assert told(copied, clip) == told(finished("keyword_spotting"), clip)


def test_silence_and_long_clips_are_the_model_s_to_judge(
    finished: Callable[[str], Path], tmp_path: Path
) -> None:
    spotter = finished("keyword_spotting")
    silent, long, short = (tmp_path / f"{name}.wav" for name in ("silent", "long", "short"))
    soundfile.write(silent, np.zeros(8000), RATE)
    # The recipe's clips are at most 40 s long.
    noise(long, 41.0)
    soundfile.write(short, np.full(5, 0.1), RATE)
    by_hand = [LABELS[int(logits_of(spotter, clip).argmax())] for clip in (silent, long)]
    assert [one["prediction"] for one in told(spotter, silent, long)] == by_hand
    # Whisper's window is a limit of its own.
    assert len(told(finished("encoder_decoder"), silent)) == 1
    assert faults(invoke("predict", finished("encoder_decoder"), long)) == [
        f"{long}: longer than 1 s (41.0 s)"
    ]
    (fault,) = faults(invoke("predict", spotter, short))
    assert fault.startswith(f"{short}: shorter than ")


@pytest.mark.parametrize("name", ["keyword_spotting", "encoder_decoder"])
def test_the_configuration_says_what_graphs_say_and_no_graph_is_read_for_it(
    finished: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import onnx
    from transformers import AutoConfig

    from hibprune.deployment.deployed import opened

    copied = copied_graphs(finished(name), tmp_path / "copied")
    told_of = AutoConfig.from_pretrained(copied).hibprune
    first = "model.onnx" if name == "keyword_spotting" else "encoder_model.onnx"
    session = onnxruntime.InferenceSession(copied / "onnx" / first)
    of_graph = {
        key.removeprefix("hibprune."): json.loads(value)
        for key, value in session.get_modelmeta().custom_metadata_map.items()
    }
    # Those of one graph alone, and labels, which config.json has as id2label.
    for key in ("recipe", "metric", "labels"):
        of_graph.pop(key, None)
    assert told_of == of_graph
    manifest = json.loads((finished(name) / "manifest.json").read_text())
    assert told_of["task"] == manifest["task"]
    assert told_of["removed_heads"] == manifest["heads"]["removed"]
    assert told_of["sampling_rate"] == RATE
    assert told_of["min_seconds"] >= 0
    assert told_of["repair"]["kind"] == manifest["repair"]["kind"]
    if name == "encoder_decoder":
        assert told_of["generation"] == manifest["generation"]
        assert told_of["max_seconds"] == 1.0

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a graph was read whole")

    monkeypatch.setattr(onnx, "load", load)
    deployment = opened(copied, "fp32")
    assert deployment.task.model_dump(mode="json") == told_of["task_settings"]
    assert deployment.preprocessor.shortest == told_of["min_seconds"]


@pytest.mark.parametrize("name", ["keyword_spotting", "encoder_decoder"])
def test_the_feature_extractor_s_file_says_what_goes_in(
    finished: Callable[[str], Path], stand_in: StandIn, tmp_path: Path, name: str
) -> None:
    directory = finished(name)
    copied = copied_graphs(directory, tmp_path / "copied")
    file = copied / "preprocessor_config.json"
    written = json.loads(file.read_text())
    said = written["hibprune"]
    assert said.keys() == {
        "min_seconds", "max_seconds", "sampling_rate", "normalised", "padding", "attention_mask",
    }  # fmt: skip
    told_of = json.loads((copied / "config.json").read_text())["hibprune"]
    assert said == {key: told_of[key] for key in said}
    assert (said["sampling_rate"], said["max_seconds"]) == {
        "keyword_spotting": (RATE, None), "encoder_decoder": (RATE, 1.0),
    }[name]  # fmt: skip
    assert invoke("verify", directory).exit_code == 0
    # transformers keeps the key, hears the same without it, and writes it again.
    waveform, _ = soundfile.read(stand_in.clip("validation", 0), dtype="float32")
    extractor = AutoFeatureExtractor.from_pretrained(copied)
    assert extractor.hibprune == said
    extractor.save_pretrained(tmp_path)
    assert json.loads((tmp_path / file.name).read_text()) == written
    file.write_text(json.dumps({key: own for key, own in written.items() if key != "hibprune"}))
    plain = AutoFeatureExtractor.from_pretrained(copied)
    with_key, without = (
        one(waveform, sampling_rate=RATE, return_tensors="np") for one in (extractor, plain)
    )
    assert with_key.keys() == without.keys()
    for key, values in with_key.items():
        assert np.array_equal(values, without[key])


def test_a_configuration_of_another_task_than_the_graph_s_is_found(
    finished: Callable[[str], Path], stand_in: StandIn, tmp_path: Path
) -> None:
    copied = copied_graphs(finished("keyword_spotting"), tmp_path / "copied")
    clip = stand_in.clip("validation", 0)
    expected = told(finished("keyword_spotting"), clip)
    settings = json.loads((copied / "config.json").read_text())
    settings["hibprune"]["task_settings"]["kind"] = "speaker-identification"
    (copied / "config.json").write_text(json.dumps(settings))
    assert faults(invoke("predict", copied, clip)) == [
        f"{copied}/onnx/model.onnx: is for another task than its config.json: take both of one run"
    ]
    # What is no task is passed over: the graph has it.
    for damaged in ({"task_settings": {"kind": "none such"}}, "text", [1], None):
        (copied / "config.json").write_text(json.dumps({**settings, "hibprune": damaged}))
        assert told(copied, clip) == expected
