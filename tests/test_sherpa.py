"""Files for sherpa-onnx: names, shapes and tokens, held against generate and sherpa-onnx itself."""

from __future__ import annotations

import base64
import json
import re
import shutil
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
from transformers import AutoTokenizer, WhisperConfig, WhisperFeatureExtractor
from transformers import WhisperForConditionalGeneration as Whisper

from hibprune.compression.remove import remove_units
from hibprune.deployment.sherpa import filled_up, metadata, table_of_tokens, write_sherpa
from hibprune.records.units import Unit

RATE = 16_000
SIZES = ("n_mels", "n_text_layer", "n_text_ctx", "n_text_state", "n_vocab", "sot", "eot",
         "blank_id", "translate", "transcribe", "is_multilingual", "no_timestamps", "no_speech",
         "sot_sequence")  # fmt: skip
"""What sherpa-onnx stops without."""


def with_80_bands(place: Path) -> None:
    """Give a stand-in's Whisper the spectra that sherpa-onnx makes."""
    model = Whisper.from_pretrained(place)
    config = WhisperConfig.from_pretrained(place, num_mel_bins=80)
    torch.manual_seed(1)
    wider = Whisper(config)
    kept = {name: one for name, one in model.state_dict().items() if "conv1.weight" not in name}
    wider.load_state_dict(kept, strict=False)
    wider.model.encoder.conv1.weight.data.mul_(8)
    wider.generation_config = model.generation_config
    wider.save_pretrained(place)
    WhisperFeatureExtractor(feature_size=80, chunk_length=1).save_pretrained(place)


@pytest.fixture
def speaker(stand_in_of: Callable[[str], StandIn]) -> StandIn:
    stand_in = stand_in_of("encoder_decoder")
    with_80_bands(stand_in.model)
    return stand_in


def clip(seconds: float = 0.6, hertz: float = 500.0) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(scale=0.05, size=len(times))
    return (0.3 * np.sin(2 * np.pi * hertz * times) + noise).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.3, 0.97])
def test_silence_behind_a_clip_is_that_of_the_feature_extractor(seconds: float) -> None:
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    for loudness in (1.0, 1e-4, 0.0):
        sound = loudness * clip(seconds)
        expected = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        # The window of a frame reaches 200 samples beyond its middle.
        own = expected[:, :, : -(-(len(sound) + 200) // 160)]
        longer = torch.nn.functional.pad(own, (0, 1000))
        for mel in (expected, own, longer):
            torch.testing.assert_close(filled_up(mel, 100), expected)


def pruned(model: Any, kind: str) -> None:
    """Take units of every kind, of layers by themselves."""
    units = {
        "uneven": [Unit(0, 1), Unit(1, 0), Unit(1, 2), Unit(0, 5, kind="neuron"),
                   Unit(0, 2, "decoder.self"), Unit(1, 0, "decoder.cross"),
                   Unit(1, 3, "decoder.cross"), Unit(1, 4, "decoder", "neuron")],
        # A decoder's layers keep a head.
        "emptied": [*(Unit(1, head) for head in range(4)),
                    *(Unit(0, head, stack) for stack in ("decoder.self", "decoder.cross")
                      for head in range(3))],
        "whole": [],
    }  # fmt: skip
    remove_units(model, units[kind])


@pytest.mark.parametrize("kind", ["whole", "uneven", "emptied"])
def test_asked_as_sherpa_asks_the_graphs_say_what_generate_says(
    speaker: StandIn, tmp_path: Path, kind: str
) -> None:
    model = Whisper.from_pretrained(speaker.model).eval()
    pruned(model, kind)
    model.generation_config.begin_suppress_tokens = [3, 4]
    tokenizer = AutoTokenizer.from_pretrained(speaker.model)
    write_sherpa(model, tokenizer, None, tmp_path, 18, {"hibprune.task": "asr-seq2seq"})
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    about = encoder.get_modelmeta().custom_metadata_map
    assert set(SIZES) <= about.keys()
    assert json.loads(about["hibprune.task"]) == "asr-seq2seq"
    assert [one.name for one in decoder.get_inputs()] == [
        "tokens", "in_n_layer_self_k_cache", "in_n_layer_self_v_cache",
        "n_layer_cross_k", "n_layer_cross_v", "offset",
    ]  # fmt: skip
    extractor = WhisperFeatureExtractor.from_pretrained(speaker.model)
    for hertz in (300.0, 700.0, 1500.0):
        sound = clip(hertz=hertz)
        mel = extractor(sound, sampling_rate=RATE, return_tensors="pt").input_features
        expected = model.generate(mel, max_new_tokens=12, do_sample=False)[0].tolist()
        # sherpa-onnx ends a spectrum by zeros of its own.
        mel = torch.nn.functional.pad(mel[:, :, :62], (0, 1000))
        cross = encoder.run(["n_layer_cross_k", "n_layer_cross_v"], {"mel": mel.numpy()})
        shape = [int(about[name]) for name in ("n_text_layer", "n_text_ctx", "n_text_state")]
        kept = [np.zeros((shape[0], 1, *shape[1:]), np.float32) for _ in range(2)]
        fed = [*map(int, about["sot_sequence"].split(",")), int(about["no_timestamps"])]
        said, offset = [], 0
        while len(said) < 12 and (not said or said[-1] != int(about["eot"])):
            names = [one.name for one in decoder.get_inputs()]
            given = [np.array([fed]), *kept, *cross, np.array([offset])]
            logits, *kept = decoder.run(None, dict(zip(names, given, strict=True)))
            offset += len(fed)
            fed = [int(logits[0, -1].argmax())]
            said += fed
        told = {model.config.decoder_start_token_id, int(about["no_timestamps"])}
        end = int(about["eot"])
        assert [token for token in said if token != end] == [
            token for token in expected if token not in {*told, end}
        ]


def test_the_table_of_tokens_spells_what_the_tokenizer_does(speaker: StandIn) -> None:
    tokenizer = AutoTokenizer.from_pretrained(speaker.model)
    lines = (line.split() for line in table_of_tokens(tokenizer).splitlines())
    spelt = {int(number): base64.b64decode(letters) for letters, number in lines}
    assert set(spelt) == set(range(len(tokenizer))) - set(tokenizer.all_special_ids)
    numbers = tokenizer("it's a TEST.", add_special_tokens=False).input_ids
    assert b"".join(spelt[number] for number in numbers) == b"it's a TEST."


def test_of_languages_it_says_which_there_are_and_the_one_it_was_told(
    stand_ins: Callable[[str], Path],
) -> None:
    place = stand_ins("encoder_decoder_of_languages") / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(place), Whisper.from_pretrained(place)
    about = metadata(model, tokenizer, "german")
    number = tokenizer.convert_tokens_to_ids
    prompt = ["<|startoftranscript|>", "<|de|>", "<|transcribe|>"]
    assert about["sot_sequence"] == ",".join(str(number(token)) for token in prompt)
    assert about["is_multilingual"] == "1"
    codes = about["all_language_codes"].split(",")
    numbers = map(int, about["all_language_tokens"].split(","))
    assert dict(zip(codes, numbers, strict=True)) == {
        code: number(f"<|{code}|>") for code in ("fr", "de", "en")
    }
    assert int(about["translate"]) == number("<|translate|>")
    assert int(about["no_timestamps"]) == number("<|notimestamps|>")


QUICK = (
    "--quiet", "--set=attribution={method: magnitude}", "--set=removal.repair=none",
    "--set=benchmark.repetitions=2", "--set=validation.limit=3", "--set=export.batches=[1]",
    "--set=export.seconds=[0.5]", "--set=budget.decoder_heads=0.25", "--set=budget.cross_heads=0.5",
    "--set=budget.neurons=0.3", "--set=budget.decoder_neurons=0.3", "--set=task.max_new_tokens=5",
)  # fmt: skip


def test_a_run_leaves_them_and_sherpa_onnx_says_what_predict_says(
    speaker: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = tmp_path / "out"
    result = invoke("run", speaker.recipe, "--output", output, *QUICK, "--set=export.sherpa=true")
    assert result.exit_code == 0, result.output
    manifest = json.loads((output / "manifest.json").read_text())
    files = manifest["sherpa"]
    assert files["relative_diff"] < 1e-4
    assert {files["encoder"], files["decoder"], files["tokens"]} <= manifest["files"].keys()
    graph = onnx.load(output / files["decoder"])
    sizes = [len(one.raw_data) for one in graph.graph.initializer]
    table = Whisper.from_pretrained(speaker.model).model.decoder.embed_tokens.weight
    # Embeddings and the last projection are one matrix, stored once.
    assert sum(size == 4 * table.numel() for size in sizes) == 1
    assert invoke("verify", output).exit_code == 0
    copied = Path(shutil.copytree(output, tmp_path / "copied"))
    shutil.rmtree(copied / "sherpa")
    assert invoke("verify", copied).exit_code == 0

    (lines,) = [
        one
        for one in re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
        if "sherpa" in one
    ]
    soundfile.write(output / "clip.wav", clip(0.95), RATE)
    said = json.loads(invoke("predict", output, output / "clip.wav", "--json").stdout)["prediction"]
    assert said
    monkeypatch.chdir(output)
    try:
        import sherpa_onnx  # noqa: F401
    except ImportError:
        pass
    else:
        exec(compile(lines, "card", "exec"), {})
        assert capsys.readouterr().out.strip() == said
    # What is asked for no longer does not stay.
    assert invoke("run", speaker.recipe, "--output", output, *QUICK).exit_code == 0
    assert not list(output.glob("sherpa/*"))
    assert json.loads((output / "manifest.json").read_text())["sherpa"] is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("keyword_spotting", "the files are those of a Whisper that transcribes"),
        ("text_classification", "the files are those of a Whisper that transcribes"),
        ("encoder_decoder_on_waveforms", "the files are those of a Whisper that transcribes"),
        ("encoder_decoder", "sherpa-onnx makes spectra of 80 or 128 bands, and the model takes "
         "others"),
    ],
)  # fmt: skip
def test_other_models_are_refused_before_anything_is_done(
    stand_in_of: Callable[[str], StandIn], name: str, why: str
) -> None:
    stand_in = stand_in_of(name)
    line = f"export.sherpa: {why}: leave it out"
    options = ("--output", stand_in.root / "out", "--set=export.sherpa=true")
    assert faults(invoke("run", stand_in.recipe, *options)) == [line]
    assert not (stand_in.root / "out").exists()
