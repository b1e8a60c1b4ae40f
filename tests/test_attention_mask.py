"""Graphs that take a mask: clips of different lengths in a batch say what each says alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from commands import faults, invoke
from in_node import (
    TRANSFORMERS_JS,
    asked_in_node,
    lay_out,
    needs,
    needs_transformers,
    said_by_the_card,
    settings,
)
from standin import LABELS, StandIn
from tiny_models import PLANS, RAW_AUDIO, STABLE, TinyModel
from tiny_models import SAMPLES_PER_SECOND as RATE
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Wav2Vec2FeatureExtractor,
)

from hibprune.deployment.export import export_masked_onnx
from hibprune.models.masking import frames_of, mask_fault, padded
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.tasks import KeywordSpotting

CTC = "AutoModelForCTC"
LAYER_NORM = {"feat_extract_norm": "layer"}
LARGE = dict.fromkeys(("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"), STABLE)
"""As the large checkpoints of each family are."""
SUITED = {**LARGE, "wav2vec2-post-norm": LAYER_NORM, "wavlm-post-norm": LAYER_NORM}
SECONDS = (0.25, 0.11, 0.19)


def tiny(name: str, **settings: Any) -> TinyModel:
    """A tiny model of a family with other settings."""
    found = next(one for one in RAW_AUDIO if one.name == name)
    return replace(found, settings={**found.settings, **settings})


def suited(name: str) -> TinyModel:
    return tiny(name.removesuffix("-post-norm"), **SUITED[name])


def clips() -> list[torch.Tensor]:
    drawn = torch.Generator().manual_seed(3)
    return [torch.randn(1, round(one * RATE), generator=drawn) for one in SECONDS]


@pytest.mark.parametrize(
    ("name", "kind", "plan"),
    [
        *((name, None, "uneven") for name in SUITED),
        ("wav2vec2", CTC, "first emptied"),
        ("wavlm", CTC, None),
    ],
)
def test_a_padded_batch_gives_what_pytorch_gives_of_single_clips(
    tmp_path: Path, name: str, kind: str | None, plan: str | None
) -> None:
    model = suited(name).build(kind)
    if plan is not None:
        model.prune_heads(PLANS[plan])
    task = "automatic-speech-recognition" if kind == CTC else "audio-classification"
    export_masked_onnx(model, tmp_path, task, 18, ("model.onnx",))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [one.name for one in session.get_inputs()] == ["input_values", "attention_mask"]
    assert {one.type for one in session.get_inputs()} == {"tensor(float)", "tensor(int64)"}
    some = clips()
    batch = padded([{"input_values": clip} for clip in some])
    assert batch["attention_mask"].sum(1).tolist() == [clip.shape[1] for clip in some]
    (together,) = session.run(["logits"], {key: one.numpy() for key, one in batch.items()})
    for clip, found in zip(some, together, strict=True):
        with torch.no_grad():
            alone = model(input_values=clip).logits[0].numpy()
        if kind == CTC:
            assert frames_of(model.config, clip.shape[1]) == len(alone)
            found = found[: len(alone)]
        np.testing.assert_allclose(found, alone, atol=1e-4 * np.abs(alone).max())


def test_a_weighted_sum_of_layers_and_an_adapter_heed_the_mask() -> None:
    """As SUPERB's models, and CTC models with fewer frames behind the encoder."""
    adapter = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 32}
    model = tiny("wav2vec2", **LAYER_NORM, **adapter).build(CTC)
    for samples in (4000, 3999, 1777):
        frames = model(input_values=torch.zeros(1, samples)).logits.shape[1]
        assert frames_of(model.config, samples) == frames
    weighted = tiny("hubert", **STABLE, use_weighted_layer_sum=True).build()
    assert fault(weighted) is None


def fault(model: Any) -> str | None:
    prepare = SoundPreprocessor(Wav2Vec2FeatureExtractor())
    return mask_fault(model, prepare, KeywordSpotting(kind="keyword-spotting"))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (tiny("wav2vec2"), "the group norm of its front end"),
        (tiny("wavlm"), "the group norm of its front end"),
        # Silence goes through several convolutions with a norm each.
        (tiny("data2vec-audio"), "its layers carry silence into the clip's own frames"),
        # A convolution in every layer.
        (tiny("conformer-relative", **LAYER_NORM), "its layers carry silence"),
        (tiny("conformer-rotary", **LAYER_NORM), "its layers carry silence"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_models_that_no_mask_helps_are_told_apart_by_trying(model: TinyModel, why: str) -> None:
    assert why in str(fault(model.build()))


@pytest.mark.parametrize("name", list(SUITED))
def test_and_those_that_one_does(name: str) -> None:
    assert fault(suited(name).build()) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("keyword_spotting", "the group norm of its front end (config.json: feat_extract_norm) "
         "counts silence in, so that padding changes answers, masked or not"),
        ("text_classification", "graphs of texts take a mask as it is"),
        ("encoder_decoder", "graphs of an encoder with a decoder take what they need as it is, "
         "and no other mask would help"),
    ],
)  # fmt: skip
def test_a_recipe_that_asks_them_is_refused_before_anything_is_done(
    stand_in_of: Callable[[str], StandIn], name: str, why: str
) -> None:
    stand_in = stand_in_of(name)
    content = stand_in.content()
    content["export"]["attention_mask"] = True
    stand_in.write(content)
    line = f"export.attention_mask: {why}: leave it out"
    assert faults(invoke("run", stand_in.recipe, "--output", stand_in.root / "out")) == [line]
    assert not (stand_in.root / "out").exists()
    assert line in invoke("check", stand_in.recipe).output


QUICK = (
    "--quiet", "--set=attribution={method: magnitude}", "--set=removal.repair=none",
    "--set=benchmark.repetitions=2", "--set=export.attention_mask=true",
)  # fmt: skip


def masked_run(stand_in: StandIn, model: Any, output: Path, *options: str) -> Path:
    """The directory of a run whose graphs take masks, of a model with a layer norm in front."""
    config = json.loads((stand_in.model / "config.json").read_text())
    for key in ("id2label", "label2id"):
        setattr(model.config, key, config[key])
    model.save_pretrained(stand_in.model)
    result = invoke("run", stand_in.recipe, "--output", output, *QUICK, *options)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def spotter(
    stand_ins: Callable[[str], Path], made_once: Callable[[str, Callable[[Path], object]], Path]
) -> Path:
    """In all precisions, and with the graph that takes the waveform."""

    def make(place: Path) -> None:
        stand_in = StandIn(Path(shutil.copytree(stand_ins("keyword_spotting"), place / "task")))
        wanted = ("export.variants=[fp32,int8,fp16]", "export.waveform=true",
                  "quantize.max_drop=100")  # fmt: skip
        options = [f"--set={one}" for one in wanted]
        masked_run(stand_in, suited("wav2vec2").build(), place / "out", *options)

    return made_once("masked-spotter", make) / "out"


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Clips of different lengths, loudness and mean."""
    drawn = np.random.default_rng(0)
    paths = []
    for number, seconds in enumerate((0.3, 0.11, 0.45, 0.2, 0.3)):
        noise = drawn.normal(0.02 * number, 0.05 * (number + 1), round(seconds * RATE))
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], noise, RATE)
    return paths


def logits_alone(directory: Path, path: Path) -> np.ndarray:
    """By extractor and PyTorch, without any mask."""
    import hibprune  # noqa: F401 - teaches transformers to load fewer heads

    sound, _ = soundfile.read(path, dtype="float32")
    extractor = AutoFeatureExtractor.from_pretrained(directory)
    values = extractor(sound, sampling_rate=RATE, return_tensors="pt")["input_values"]
    model = AutoModelForAudioClassification.from_pretrained(directory).eval()
    with torch.no_grad():
        return np.asarray(model(input_values=values).logits[0].numpy())


def test_every_precision_and_client_takes_the_mask(spotter: Path, sounds: list[Path]) -> None:
    from optimum.onnxruntime import ORTModelForAudioClassification

    read = [soundfile.read(path, dtype="float32")[0] for path in sounds]
    extractor = AutoFeatureExtractor.from_pretrained(spotter)
    # The saved extractor gives the mask by itself.
    inputs = extractor(read, sampling_rate=RATE, padding=True, return_tensors="pt")
    alone = np.stack([logits_alone(spotter, path) for path in sounds])
    scale = np.abs(alone).max()
    for name, tolerance in (("model", 1e-4), ("model_fp16", 0.02), ("model_quantized", 0.3)):
        model = ORTModelForAudioClassification.from_pretrained(
            spotter, subfolder="onnx", file_name=f"{name}.onnx"
        )
        assert np.abs(model(**inputs).logits.numpy() - alone).max() < tolerance * scale, name
    # And raw, where the graph normalises each clip over its own samples.
    session = onnxruntime.InferenceSession(spotter / "onnx/model_waveform.onnx")
    longest = max(map(len, read))
    raw = np.stack([np.pad(one, (0, longest - len(one))) for one in read])
    mask = np.stack([np.arange(longest) < len(one) for one in read]).astype(np.int64)
    # What lies behind a clip is not listened to.
    raw += 0.3 * (1 - mask).astype(np.float32)
    (heard,) = session.run(["logits"], {"waveform": raw, "attention_mask": mask})
    assert np.abs(heard - alone).max() < 1e-3 * scale


def test_predict_fills_batches_up_and_answers_as_it_does_of_single_clips(
    spotter: Path, sounds: list[Path]
) -> None:
    asked = ("predict", spotter, *sounds, "--scores", "--json")
    expected = [logits_alone(spotter, path) for path in sounds]
    for batch in (1, 3):
        result = invoke(*asked, "--batch", batch)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        said = [json.loads(line) for line in result.stdout.splitlines()]
        assert [one["file"] for one in said] == list(map(str, sounds))
        for one, logits in zip(said, expected, strict=True):
            shares = torch.softmax(torch.from_numpy(logits), -1).tolist()
            wanted = dict(zip(LABELS, shares, strict=True))
            assert one["scores"] == pytest.approx(wanted, abs=1e-4)
    assert invoke(*asked, "--batch", 5, "--variant", "fp16").exit_code == 0


def test_the_directory_says_so_and_verify_listens_with_the_mask(spotter: Path) -> None:
    manifest = json.loads((spotter / "manifest.json").read_text())
    assert manifest["attention_mask"] is True
    effect = next(one for one in manifest["variants"] if one["name"] == "pruned")["padding"]
    assert effect["equal"] == effect["n"]
    assert effect["longest"] > 1
    card = " ".join((spotter / "README.md").read_text().split())
    assert "`input_values` and an `attention_mask`" in card
    assert "none of 24 get another answer than alone" in card
    about = onnxruntime.InferenceSession(spotter / "onnx/model_quantized.onnx").get_modelmeta()
    assert json.loads(about.custom_metadata_map["hibprune.attention_mask"]) is True
    example = {path.name: np.load(path) for path in (spotter / "example").glob("*.npy")}
    assert (
        example["attention_mask.npy"].tolist() == np.ones_like(example["input_values.npy"]).tolist()
    )
    result = invoke("verify", spotter)
    assert result.exit_code == 0, result.output
    assert "onnx/model_waveform.onnx: " in result.stdout


def test_the_cards_lines_run(
    spotter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    place = Path(shutil.copytree(spotter, tmp_path / "copied"))
    shutil.copy(place / "example/input.wav", place / "clip.wav")
    monkeypatch.chdir(place)
    said = json.loads(invoke("predict", place, place / "clip.wav", "--json").stdout)["prediction"]
    snippets = re.findall(r"```python\n(.*?)```", (place / "README.md").read_text(), re.DOTALL)
    for snippet in snippets:
        exec(compile(snippet, "card", "exec"), {})
        printed = capsys.readouterr().out.strip()
        assert printed in ("", said)
    assert "attention_mask = new Tensor" in (place / "README.md").read_text()


@needs("onnxruntime-node")
def test_the_cards_javascript_runs(spotter: Path, tmp_path: Path) -> None:
    clip = spotter / "example/input.wav"
    told = invoke("predict", spotter, clip, "--json").stdout
    assert said_by_the_card(spotter, clip, tmp_path) == json.loads(told)["prediction"]


@needs_transformers
def test_transformers_js_gives_the_mask(spotter: Path, sounds: list[Path], tmp_path: Path) -> None:
    lay_out(tmp_path, spotter, sounds[2])
    found = asked_in_node(
        tmp_path, settings("audio-classification", "fp32", "q8") + TRANSFORMERS_JS
    )
    for dtype, variant, tolerance in (("fp32", "pruned", 1e-3), ("q8", "pruned-int8", 0.05)):
        asked = ("predict", spotter, sounds[2], "--variant", variant, "--scores", "--json")
        expected = json.loads(invoke(*asked).stdout)["scores"]
        assert found[dtype] == pytest.approx(expected, abs=tolerance)


def test_transcripts_are_cut_at_their_own_ends(
    stand_in_of: Callable[[str], StandIn], tmp_path: Path, sounds: list[Path],
    capsys: pytest.CaptureFixture[str], monkeypatch: Any,
) -> None:  # fmt: skip
    stand_in = stand_in_of("speech_recognition")
    model = suited("hubert").build(CTC)
    # It speaks of silence, too, which would stand behind the shorter clips.
    model.lm_head.bias.data += torch.randn(model.lm_head.bias.shape)
    options = ("--set=export.variants=[fp32]", "--set=export.batches=[1]")
    output = masked_run(stand_in, model, tmp_path / "out", *options)
    # Agreement with PyTorch is of padded batches, too.
    variants = json.loads((output / "manifest.json").read_text())["variants"]
    assert {tuple(one["parity"]["batches"]) for one in variants} == {(1, 2)}
    singly = invoke("predict", output, *sounds)
    assert (singly.exit_code, singly.stderr) == (0, ""), singly.output
    assert invoke("predict", output, *sounds, "--batch", 5).stdout == singly.stdout
    assert invoke("verify", output).exit_code == 0

    shutil.copy(sounds[0], output / "clip.wav")
    monkeypatch.chdir(output)
    snippets = re.findall(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)
    for snippet in snippets:
        exec(compile(snippet, "card", "exec"), {})
        (text,) = eval(capsys.readouterr().out)
        assert text == singly.stdout.splitlines()[0].partition(": ")[2].strip()
