"""Graphs that take the waveform: what extractor and model make of it, and whom they suit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from commands import faults, invoke
from standin import StandIn
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from hibprune.deployment.waveform import LogMel, Normalisation

RATE = 16_000


@pytest.mark.parametrize("seconds", [0.05, 0.7, 1.0, 1.4])
def test_log_mel_is_that_of_the_extractor(seconds: float) -> None:
    """Also of silence, of a pure tone, and of what is longer than the window."""
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    times = np.arange(round(seconds * RATE)) / RATE
    clips = np.stack(
        [
            np.random.default_rng(0).normal(scale=0.1, size=len(times)),
            0.5 * np.sin(2 * np.pi * 440 * times),
            np.zeros(len(times)),
        ]
    ).astype(np.float32)
    expected = extractor(list(clips), sampling_rate=RATE, return_tensors="np").input_features
    found = LogMel(extractor)(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_normalisation_is_that_of_the_extractor() -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    clips = np.random.default_rng(0).normal(0.3, 0.01, (2, 4000)).astype(np.float32)
    expected = extractor(list(clips), sampling_rate=RATE, return_tensors="np").input_values
    found = Normalisation()(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4)


QUICK = (
    "--quiet", "--set=export.waveform=true", "--set=attribution={method: magnitude}",
    "--set=removal.repair=none", "--set=benchmark.repetitions=2",
)  # fmt: skip


def test_a_spotter_hears_a_waveform_and_verify_listens_too(
    stand_in: StandIn, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = invoke("run", stand_in.recipe, "--output", output, *QUICK)
    assert result.exit_code == 0, result.output
    graph = output / "onnx/model_waveform.onnx"
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["waveform"]["path"] == "onnx/model_waveform.onnx"
    assert manifest["waveform"]["relative_diff"] < 1e-4
    assert "onnx/model_waveform.onnx" in manifest["files"]
    assert "onnx/model_waveform.onnx" in (output / "README.md").read_text()
    metadata = {entry.key for entry in onnx.load(graph).metadata_props}
    assert "hibprune.labels" in metadata

    import hibprune  # noqa: F401 - teaches transformers to load fewer heads

    model = AutoModelForAudioClassification.from_pretrained(output).eval()
    extractor = AutoFeatureExtractor.from_pretrained(output)
    session = onnxruntime.InferenceSession(graph)
    for number in range(3):
        sound, _ = soundfile.read(stand_in.clip("validation", number), dtype="float32")
        sound = 0.2 + 0.5 * sound
        inputs = extractor(sound, sampling_rate=RATE, return_tensors="pt")
        with torch.no_grad():
            expected = model(**inputs).logits.numpy()
        (found,) = session.run(["logits"], {"waveform": sound[None]})
        np.testing.assert_allclose(found, expected, atol=1e-4)

    checked = invoke("verify", output)
    assert checked.exit_code == 0, checked.output
    assert "onnx/model_waveform.onnx: " in checked.stdout
    spoiled = onnx.load(graph)
    weight = max(spoiled.graph.initializer, key=lambda one: len(one.raw_data))
    weight.raw_data = bytes(len(weight.raw_data))
    onnx.save(spoiled, graph)
    told = faults(invoke("verify", output))
    assert any("onnx/model_waveform.onnx: not as the run left it" in line for line in told)
    assert any("so that it is another model's" in line for line in told)

    again = [option for option in QUICK if "waveform" not in option]
    assert invoke("run", stand_in.recipe, "--output", output, *again, *QUICK[1:2]).exit_code == 0
    assert invoke("verify", output).exit_code == 0
    # What is asked for no longer does not stay.
    assert invoke("run", stand_in.recipe, "--output", output, *again).exit_code == 0
    assert not graph.exists()
    assert json.loads((output / "manifest.json").read_text())["waveform"] is None


def test_whispers_encoder_hears_a_waveform(
    stand_in_of: Callable[[str], StandIn], tmp_path: Path
) -> None:
    stand_in, output = stand_in_of("encoder_decoder"), tmp_path / "out"
    more = ("--set=validation.limit=3", "--set=export.batches=[1]", "--set=export.seconds=[0.5]")
    result = invoke("run", stand_in.recipe, "--output", output, *QUICK, *more)
    assert result.exit_code == 0, result.output
    extractor = AutoFeatureExtractor.from_pretrained(output)
    first, heard = (
        onnxruntime.InferenceSession(output / f"onnx/{name}.onnx")
        for name in ("encoder_model", "encoder_model_waveform")
    )
    sound, _ = soundfile.read(stand_in.clip("validation", 0), dtype="float32")
    features = extractor(sound, sampling_rate=RATE, return_tensors="np").input_features
    (expected,) = first.run(None, {"input_features": features})
    (found,) = heard.run(None, {"waveform": sound[None]})
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("text_classification", "texts have no waveform"),
        ("encoder_decoder_on_waveforms", "its encoder takes the waveform as it is"),
    ],
)
def test_models_without_such_a_graph_are_refused_before_anything_is_done(
    stand_in_of: Callable[[str], StandIn], name: str, why: str
) -> None:
    stand_in = stand_in_of(name)
    content: dict[str, Any] = stand_in.content()
    content["export"] = {**content["export"], "waveform": True}
    stand_in.write(content)
    expected = [f"export.waveform: {why}: leave it out"]
    assert faults(invoke("run", stand_in.recipe, "--output", stand_in.root / "out")) == expected
    assert not (stand_in.root / "out").exists()
