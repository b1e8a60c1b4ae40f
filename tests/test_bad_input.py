"""Bad input: exit code 2, one plain line per fault, and nothing written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from commands import refused, run
from standin import LABELS, SAMPLING_RATE, StandIn

from hibprune.records.manifest import Manifest

Spoil = Callable[[StandIn], object]


def set_config(**values: object) -> Spoil:
    def spoil(stand_in: StandIn) -> None:
        path = stand_in.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def set_row(split: str, **values: str | None) -> Spoil:
    """Change the fourth line of a manifest; None takes a column out."""

    def spoil(stand_in: StandIn) -> None:
        rows = stand_in.rows(split)
        rows[3] = {k: v for k, v in {**rows[3], **values}.items() if v is not None}
        stand_in.write_rows(split, rows)

    return spoil


# The model -----------------------------------------------------------------------------------

TYPES = (
    "audio-spectrogram-transformer, bert, data2vec-audio, distilbert, hubert, moonshine, roberta, "
    "unispeech, unispeech-sat, wav2vec2, wav2vec2-conformer, wavlm, whisper"
)


def base_model_only(stand_in: StandIn) -> None:
    from tiny_models import TINY_MODELS

    TINY_MODELS[0].build("AutoModel").save_pretrained(stand_in.model)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda s: s.recipe.unlink(), "recipe.yaml: no such file"),
        (lambda s: shutil.rmtree(s.model),
         "recipe.yaml: model.source: model: no such directory, and not a Hub id (owner/name)"),
        (lambda s: (s.model / "config.json").unlink(),
         "recipe.yaml: model.source: model: no config.json in it: "
         "not a Hugging Face model directory"),
        (lambda s: (s.model / "model.safetensors").unlink(),
         "recipe.yaml: model.source: model: no model.safetensors in it "
         "(model.pickle: true also accepts pytorch_model.bin)"),
        (set_config(model_type="bert"),
         "model: cannot serve 'keyword-spotting': transformers has no "
         "AutoModelForAudioClassification of model type 'bert'"),
        (set_config(model_type="vit"),
         f"model: no known attention heads in model type 'vit': use one of {TYPES}"),
        (base_model_only,
         "model: no weights for classifier.bias and 3 more: not a model trained for task "
         "'keyword-spotting'"),
        (set_config(num_attention_heads=5),
         "model: cannot read its weights (model.safetensors): embed_dim must be divisible by "
         "num_heads (got `embed_dim`: 32 and `num_heads`: 5)."),
        (set_config(id2label={"0": "only"}, label2id={"only": 0}),
         "model: its weights do not have the shapes its config.json says"),
    ],
)  # fmt: skip
def test_models_that_cannot_serve(stand_in: StandIn, spoil: Spoil, fault: str) -> None:
    spoil(stand_in)
    assert refused(stand_in) == [fault]


@pytest.mark.parametrize(
    ("spoil", "start"),
    [
        (lambda s: (s.model / "config.json").write_text('{"a'),
         "model: cannot read its config.json: "),
        (lambda s: (s.model / "config.json").write_text("[]"),
         "model: cannot read its config.json: "),
        (set_config(model_type="nonsense"), "model: cannot read its config.json: "),
        (set_config(pruned_heads={"7": [1]}), "model: cannot read its weights "),
        (lambda s: (s.model / "preprocessor_config.json").unlink(),
         "model: cannot read its feature extractor (preprocessor_config.json): "),
        (lambda s: os.truncate(s.model / "model.safetensors", 0),
         "model: cannot read its weights (model.safetensors): "),
        (lambda s: os.truncate(s.model / "model.safetensors", 60_000),
         "model: cannot read its weights (model.safetensors): "),
        (lambda s: (s.model / "model.safetensors").write_bytes(b"\0" * 200),
         "model: cannot read its weights (model.safetensors): "),
    ],
)  # fmt: skip
def test_damaged_models(stand_in: StandIn, spoil: Spoil, start: str) -> None:
    spoil(stand_in)
    (fault,) = refused(stand_in)
    assert fault.startswith(start)
    assert len(fault) < 300


def test_a_tokenizer_that_is_not_there(recogniser: StandIn) -> None:
    (recogniser.model / "vocab.json").unlink()
    (fault,) = refused(recogniser)
    assert fault.startswith("model: cannot read its tokenizer (tokenizer_config.json, vocab.json)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(stand_in: StandIn) -> None:
    assert refused(stand_in, "--device", "cuda") == [
        "device: cuda is asked for, but torch sees no GPU: use auto or cpu"
    ]


# Targets -------------------------------------------------------------------------------------


@pytest.fixture
def recogniser(stand_ins: Callable[[str], Path], tmp_path: Path) -> StandIn:
    return StandIn(Path(shutil.copytree(stand_ins("speech_recognition"), tmp_path / "asr")))


@pytest.fixture
def intent_stand_in(stand_ins: Callable[[str], Path], tmp_path: Path) -> StandIn:
    return StandIn(Path(shutil.copytree(stand_ins("intents"), tmp_path / "intents")))


@pytest.mark.parametrize("split", ["calibration", "validation"])
@pytest.mark.parametrize(
    ("label", "fault"),
    [
        ("w33", "the model has no label 'w33' (did you mean 'w3'?); "
                f"it knows {', '.join(LABELS)}"),
        ("zzz", f"the model has no label 'zzz'; it knows {', '.join(LABELS)}"),
        ("a\nb\x1b[31m", f"the model has no label 'a b�[31m'; it knows {', '.join(LABELS)}"),
    ],
)  # fmt: skip
def test_labels_unknown_to_the_model(stand_in: StandIn, split: str, label: str, fault: str) -> None:
    set_row(split, label=label)(stand_in)
    assert refused(stand_in) == [f"{split}: {split}/3.wav: {fault}"]


@pytest.mark.parametrize("split", ["calibration", "validation"])
def test_a_line_without_label(stand_in: StandIn, split: str) -> None:
    set_row(split, label=None)(stand_in)
    assert refused(stand_in) == [f"{split}.jsonl:4: no 'label'; the line has audio"]


@pytest.mark.parametrize("split", ["calibration", "validation"])
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ÄÖ A", "{split}: {split}/3.wav: the tokenizer cannot encode ['Ä', 'Ö'] in 'ÄÖ A'"),
        ("", "{split}.jsonl:4: 'text' is empty"),
        ("  ", "{split}.jsonl:4: 'text' is empty"),
    ],
)
def test_transcripts_that_cannot_be_encoded(
    recogniser: StandIn, split: str, text: str, fault: str
) -> None:
    set_row(split, text=text)(recogniser)
    assert refused(recogniser) == [fault.format(split=split)]


def test_a_slot_with_an_unknown_label(intent_stand_in: StandIn) -> None:
    set_row("validation", object="lamb")(intent_stand_in)
    assert refused(intent_stand_in) == [
        "validation: validation/3.wav: slot 'object': the model has no label 'lamb' "
        "(did you mean 'lamp'?); it knows none, lamp, heat"
    ]


# The budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "fault"),
    [
        ("{heads: 9}", "9 heads to remove, but only 8 of 8 can go with min_heads_per_layer 0"),
        ("{heads: 7, min_heads_per_layer: 1}",
         "7 heads to remove, but only 6 of 8 can go with min_heads_per_layer 1"),
        ("{heads: 5, scope: layerwise}",
         "5 heads to remove from layer 0, which has 4 and keeps min_heads_per_layer 0"),
        ("{fraction: 0.75, scope: layerwise, min_heads_per_layer: 2}",
         "3 heads to remove from layer 0, which has 4 and keeps min_heads_per_layer 2"),
    ],
)  # fmt: skip
def test_more_heads_than_may_go(stand_in: StandIn, budget: str, fault: str) -> None:
    assert refused(stand_in, "--set", f"budget={budget}") == [f"budget: {fault}: lower the budget"]


# Sound ---------------------------------------------------------------------------------------


def ten_minutes(path: Path) -> None:
    soundfile.write(path, np.full(600 * 100, 0.1), 100, subtype="PCM_U8")


BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "missing"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "no frames": (lambda path: soundfile.write(path, np.zeros(0), SAMPLING_RATE), "empty"),
    "truncated": (lambda path: os.truncate(path, 3000), "truncated"),
    "no audio": (lambda path: path.write_text("hello" * 100), "not audio that libsndfile can open"),
    "silent": (lambda path: soundfile.write(path, np.zeros(8000), SAMPLING_RATE), "silent"),
    "NaN": (
        lambda path: soundfile.write(path, np.full(8000, np.nan), SAMPLING_RATE, subtype="FLOAT"),
        "holds NaN or infinite values",
    ),
    "0.01 s": (
        lambda path: soundfile.write(path, np.full(160, 0.1), SAMPLING_RATE),
        "shorter than 0.1 s (0.010 s)",
    ),
    "10 minutes": (ten_minutes, "longer than 40 s (600.0 s)"),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_one_bad_clip_in_thirty_is_too_many(stand_in: StandIn, name: str) -> None:
    spoil, reason = BAD_CLIPS[name]
    spoil(stand_in.clip("validation", 3))
    (fault,) = refused(stand_in)
    assert fault.startswith(
        "validation: 1 of the first 4 clips cannot be used, more than max_unreadable (0.01) "
        f"allows: validation/3.wav: {reason}"
    )
    assert fault.endswith("; mend or remove them")


def test_bad_clips_below_the_share_are_named_counted_and_skipped(stand_in: StandIn) -> None:
    reasons = {}
    for number, (name, (spoil, reason)) in enumerate(BAD_CLIPS.items()):
        spoil(stand_in.clip("validation", number))
        reasons[f"validation/{number}.wav"] = (name, reason)
    result = run(stand_in, "--set", "validation.max_unreadable=0.3")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith(f"20 calibration and 21 validation clips, {len(reasons)} skipped")
    for line, (clip, (_, reason)) in zip(lines[1:], reasons.items(), strict=False):
        assert line.startswith(f"skipped validation clip {clip}: {reason}")
    manifest = Manifest.model_validate_json((stand_in.root / "out/manifest.json").read_text())
    assert [clip.id for clip in manifest.validation.skipped] == list(reasons)
    assert manifest.validation.n == 30 - len(reasons)
    assert [line.split(" ", 1)[1] for line in (
        (stand_in.root / "out/run.log").read_text().splitlines()[1 : 1 + len(reasons)]
    )] == lines[1 : 1 + len(reasons)]  # fmt: skip


def test_bad_calibration_clips_leave_too_few(stand_in: StandIn) -> None:
    for number in (0, 1):
        stand_in.clip("calibration", number).write_bytes(b"")
    assert refused(stand_in, "--set", "calibration.max_unreadable=0.2") == [
        "calibration: 20 clips asked for, but there are 20, 2 of them unreadable; "
        "ask for fewer or add data"
    ]


def test_fewer_clips_than_asked_for(stand_in: StandIn) -> None:
    assert refused(stand_in, "--set", "calibration.samples=21") == [
        "calibration: 21 clips asked for, but there are 20; ask for fewer or add data"
    ]


def same_file(stand_in: StandIn) -> str:
    rows = [*stand_in.rows("validation"), stand_in.rows("calibration")[0]]
    stand_in.write_rows("validation", rows)
    return "calibration/0.wav"


def same_content(stand_in: StandIn) -> str:
    shutil.copy(stand_in.clip("calibration", 2), stand_in.clip("validation", 1))
    return "calibration/2.wav = validation/1.wav"


@pytest.mark.parametrize("share", [same_file, same_content])
def test_calibration_that_overlaps_validation(
    stand_in: StandIn, share: Callable[[StandIn], str]
) -> None:
    shared = share(stand_in)
    assert refused(stand_in) == [
        f"calibration and validation share 1 clip: {shared}; "
        "validate on clips that the heads were not chosen on"
    ]


@pytest.mark.parametrize("row", [{"label": "x" * 900_000}, {"audio": "x" * 5_000 + ".wav"}])
def test_what_an_error_quotes_is_a_line_to_be_read(stand_in: StandIn, row: dict[str, str]) -> None:
    set_row("validation", **row)(stand_in)
    (fault,) = refused(stand_in)
    assert "xxx…" in fault
    assert len(fault) < 1500
