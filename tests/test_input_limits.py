"""Inputs that a model does not take whole are refused or skipped by name, and never cut in silence.

The limits are asked of feature extractor and model by trying them; the tests compute them from the
published formulas of frames.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from commands import faults, invoke, refused, run
from standin import LABELS, SAMPLING_RATE, StandIn
from tiny_models import TINY_MODELS
from transformers import SequenceFeatureExtractor

import hibprune.models.extractor
from hibprune.data import AudioFile, ContentFault, DurationLimits
from hibprune.errors import UserError
from hibprune.models.checkpoint import load_checkpoint
from hibprune.models.extractor import CUT_NOTHING, longest_heard
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.models.source import ModelSource
from hibprune.models.staging import StagedCheckpoint
from hibprune.records.medium import Length
from hibprune.tasks.classification import KeywordSpotting
from hibprune.tasks.ctc import SpeechRecognitionCTC

CPU = torch.device("cpu")
TINY = {tiny.name: tiny for tiny in TINY_MODELS}


@pytest.fixture
def staged(tmp_path: Path) -> StagedCheckpoint:
    return StagedCheckpoint(tmp_path, "model", ())


class Cutting(SequenceFeatureExtractor):
    """Takes what is between two samples of a clip, and forgets the rest."""

    def __init__(self, samples: float, rate: int = SAMPLING_RATE, padded: bool = False) -> None:
        super().__init__(feature_size=1, sampling_rate=rate, padding_value=0.0)
        self.samples, self.padded = samples, padded
        self.model_input_names = ["input_values"]

    def __call__(self, clips: list[np.ndarray], **options: Any) -> dict[str, torch.Tensor]:
        kept = [clip[: int(min(self.samples, len(clip)))] for clip in clips]
        if self.padded:
            kept = [np.pad(clip, (0, int(self.samples) - len(clip))) for clip in kept]
        return {"input_values": torch.from_numpy(np.stack(kept))}


@pytest.mark.parametrize(
    ("extractor", "seconds"),
    [
        (Cutting(math.inf), math.inf),
        (Cutting(12_345), 12_345 / 16_000),
        (Cutting(12_345, padded=True), 12_345 / 16_000),
        (Cutting(161_001), 161_001 / 16_000),
        (Cutting(1_000_000), 62.5),
        (Cutting(8_000, 8_000), 1.0),
        (Cutting(1), 1 / 16_000),
        (transformers.Wav2Vec2FeatureExtractor(), math.inf),
        (transformers.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True),
         math.inf),
        # Settings of other extractors' names change nothing about one that does not know them.
        (transformers.Wav2Vec2FeatureExtractor(
            max_length=400, truncation=True, padding="max_length"), math.inf),
        # A window of 25 ms every 10 ms: 64 of them end after 63 · 10 + 25 ms.
        (transformers.ASTFeatureExtractor(max_length=64), 0.655),
        (transformers.ASTFeatureExtractor(), 10.255),
        (transformers.ASTFeatureExtractor(max_length=64, do_normalize=False), 0.655),
        (transformers.WhisperFeatureExtractor(), 30.0),
        (transformers.WhisperFeatureExtractor(16, chunk_length=2), 2.0),
        (transformers.WhisperFeatureExtractor(16, chunk_length=2, do_normalize=True), 2.0),
    ],
)  # fmt: skip
def test_a_feature_extractor_is_asked_for_its_limit_by_trying_it(
    extractor: Any, seconds: float, staged: StagedCheckpoint
) -> None:
    assert longest_heard(extractor, staged) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize("settings", [{}, {"do_normalize": False, "return_attention_mask": True}])
def test_those_that_are_known_to_cut_nothing_cut_nothing(
    settings: dict[str, bool], staged: StagedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are spared long clips, but for here."""
    assert CUT_NOTHING
    monkeypatch.setattr(hibprune.models.extractor, "CUT_NOTHING", ())
    for kind in CUT_NOTHING:
        assert longest_heard(kind(**settings), staged) == math.inf


@pytest.mark.parametrize(
    ("extractor", "fault"),
    [
        (Cutting(0, padded=True), "hears nothing: take preprocessor_config.json from the same"),
        (transformers.WhisperFeatureExtractor(16, chunk_length=1, dither=0.1),
         "makes something else of one clip at every time: set dither to 0"),
        # Cuts a clip of more than 10 s at a place drawn by chance.
        (transformers.ClapFeatureExtractor(), "makes something else of one clip at every time"),
    ],
)  # fmt: skip
def test_feature_extractors_that_cannot_be_relied_on(
    extractor: Any, fault: str, staged: StagedCheckpoint
) -> None:
    with pytest.raises(UserError, match=rf"^model: its feature extractor \(\w+\) {fault}"):
        longest_heard(extractor, staged)


# In a run ------------------------------------------------------------------------------------


def spectrogram_transformer(stand_in: StandIn, frames: int = 64) -> None:
    """A tiny AST whose window is 0.655 s."""
    config = TINY["ast"].config(max_length=frames)
    model = transformers.AutoModelForAudioClassification.from_config(config)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: number for number, label in enumerate(LABELS)}
    model.save_pretrained(stand_in.model)
    extractor = transformers.ASTFeatureExtractor(max_length=frames, num_mel_bins=32)
    extractor.save_pretrained(stand_in.model)


def lengthen(stand_in: StandIn, number: int, seconds: float) -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=round(seconds * SAMPLING_RATE))
    soundfile.write(stand_in.clip("validation", number), noise, SAMPLING_RATE)


LENGTHS = ("--set", "export.seconds=[0.5]", "--set", "validation.max_unreadable=0.2", "--quiet")


def test_clips_beyond_the_window_are_skipped_by_name(stand_in: StandIn) -> None:
    """Two clips that differ only behind the window had equal logits, and nobody was told."""
    spectrogram_transformer(stand_in)
    lengthen(stand_in, 3, 0.655)
    lengthen(stand_in, 4, 0.656)
    lengthen(stand_in, 5, 3.0)
    result = run(stand_in, *LENGTHS)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1:3] == [
        "skipped validation clip validation/4.wav: longer than 0.655 s (0.7 s)",
        "skipped validation clip validation/5.wav: longer than 0.655 s (3.0 s)",
    ]
    # The exported model is asked for no more, either.
    output = stand_in.root / "out"
    answered = invoke("predict", output, stand_in.clip("validation", 3))
    assert answered.exit_code == 0, answered.output
    assert faults(invoke("predict", output, stand_in.clip("validation", 5))) == [
        f"{stand_in.clip('validation', 5)}: longer than 0.655 s (3.0 s)"
    ]


def test_lengths_to_export_and_to_time_have_to_fit_the_window(stand_in: StandIn) -> None:
    spectrogram_transformer(stand_in)
    assert refused(stand_in) == [
        "export.seconds: 1 s is more than the 0.655 s that the model takes: set shorter ones"
    ]


def test_a_window_that_the_model_was_not_built_for(stand_in: StandIn) -> None:
    spectrogram_transformer(stand_in)
    settings = stand_in.model / "preprocessor_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_length": 80}))
    (fault,) = refused(stand_in, *LENGTHS)
    assert fault.startswith("model: fails on a trial clip of 0.815 s: ")


# Short clips ---------------------------------------------------------------------------------

RECEPTIVE = 10 + (3 - 1) * 8 + (3 - 1) * 8 * 5
"""Samples of the first output: kernels 10, 3, 3 at strides 8, 5, 4."""


def spotter(stand_in: StandIn) -> SoundPreprocessor:
    source, task = ModelSource(source="model"), KeywordSpotting(kind="keyword-spotting")
    found = load_checkpoint(source, task, stand_in.root, CPU).preprocessor
    assert isinstance(found, SoundPreprocessor)
    return found


def test_the_model_is_asked_for_its_shortest_clip(stand_in: StandIn) -> None:
    """Its first output hears so many samples, and of fewer nothing comes out."""
    found = spotter(stand_in)
    assert found.shortest == RECEPTIVE / SAMPLING_RATE
    assert found.longest == math.inf


def test_a_model_whose_clips_are_padded_takes_any(
    stand_in_of: Callable[[str], StandIn], stand_in: StandIn
) -> None:
    spectrogram_transformer(stand_in)
    # Its spectra need a window of 25 ms.
    assert spotter(stand_in).shortest == 400 / SAMPLING_RATE


def test_kernels_as_they_are_published(stand_in: StandIn) -> None:
    """wav2vec2's front end hears 400 samples, 25 ms."""
    config = TINY["wav2vec2"].config(
        conv_dim=(16,) * 7, conv_kernel=(10, 3, 3, 3, 3, 2, 2), conv_stride=(5, 2, 2, 2, 2, 2, 2),
        num_feat_extract_layers=7,
    )  # fmt: skip
    model = transformers.AutoModelForAudioClassification.from_config(config)
    model.config.id2label = dict(enumerate(LABELS))
    model.config.label2id = {label: number for number, label in enumerate(LABELS)}
    model.save_pretrained(stand_in.model)
    assert spotter(stand_in).shortest == 0.025


def test_clips_shorter_than_the_first_output_hears_are_skipped_by_name(stand_in: StandIn) -> None:
    for number, samples in ((3, RECEPTIVE - 1), (4, RECEPTIVE), (5, 1)):
        noise = np.random.default_rng(0).normal(scale=0.1, size=samples)
        soundfile.write(stand_in.clip("validation", number), noise, SAMPLING_RATE)
    result = run(
        stand_in, "--quiet", "--set", "validation.min_seconds=1e-9",
        "--set", "validation.max_unreadable=0.2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[1:3] == [
        "skipped validation clip validation/3.wav: shorter than 0.006625 s (0.007 s)",
        "skipped validation clip validation/5.wav: shorter than 0.006625 s (0.000 s)",
    ]


def test_an_adapter_makes_no_difference_to_it(stand_in_of: Callable[[str], StandIn]) -> None:
    stand_in = stand_in_of("speech_recognition")
    config = TINY["wav2vec2"].config(add_adapter=True)
    transformers.AutoModelForCTC.from_config(config).save_pretrained(stand_in.model)
    source, task = ModelSource(source="model"), SpeechRecognitionCTC(kind="asr-ctc")
    found = load_checkpoint(source, task, stand_in.root, CPU)
    shortest = Length(value=found.preprocessor.shortest, unit="seconds")
    assert found.model(**found.preprocessor.example(shortest, 1)).logits.shape[1] == 1


def test_a_crop_is_not_shorter_either(stand_in: StandIn) -> None:
    assert refused(stand_in, "--set", "calibration.crop_seconds=0.005") == [
        "calibration.crop_seconds: 0.005 s is less than the 0.006625 s that the model needs: "
        "raise it"
    ]


def test_limits_of_recipe_and_model_count_together(tmp_path: Path) -> None:
    prepare = SoundPreprocessor(Cutting(8000), longest=0.5, shortest=0.2)
    clip = AudioFile(tmp_path / "clip.wav")

    def read(seconds: float, limits: DurationLimits) -> str:
        noise = np.random.default_rng(0).normal(scale=0.1, size=round(seconds * SAMPLING_RATE))
        soundfile.write(clip.path, noise, SAMPLING_RATE)
        try:
            return f"{len(prepare.read(clip, limits))}"
        except ContentFault as fault:
            return fault.reason

    wide, narrow = DurationLimits(min_seconds=0.1), DurationLimits(min_seconds=0.3, max_seconds=0.4)
    assert read(0.15, wide) == "shorter than 0.2 s (0.150 s)"
    assert read(0.2, wide) == "3200"
    assert read(0.5, wide) == "8000"
    assert read(0.6, wide) == "longer than 0.5 s (0.6 s)"
    assert read(0.25, narrow) == "shorter than 0.3 s (0.250 s)"
    assert read(0.45, narrow) == "longer than 0.4 s (0.5 s)"


# Text ----------------------------------------------------------------------------------------


def test_a_tokenizers_own_cutting_and_padding_is_not_used(reviews: StandIn) -> None:
    """A tokenizer's file may say to cut every text; one that is too long is told of instead."""
    path = reviews.model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0,
    }  # fmt: skip
    content["padding"] = {
        "strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    result = run(reviews, "--quiet")
    assert result.exit_code == 0, result.output
    assert "accuracy 100.00%" in result.stdout
