"""Bad input of encoder–decoder recognition: told early in a plain line, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from commands import faults, invoke, refused, run
from standin import SAMPLING_RATE, StandIn

Make = Callable[[str], StandIn]
FEW = (
    "--set", "validation.limit=4", "--set", "export.seconds=[0.5]", "--set", "export.batches=[1]",
    "--set", "benchmark.repetitions=2", "--set", "removal.repair=none",
)  # fmt: skip
"""What a run takes its time over, where it is not what the test is about."""
ONE_STEP = ("--set", "attribution.steps=1", "--set", "attribution.batch_size=20")

WHISPER, MANY, MOONSHINE = (
    "encoder_decoder",
    "encoder_decoder_of_languages",
    "encoder_decoder_on_waveforms",
)


def set_text(stand_in: StandIn, split: str, text: str) -> None:
    """Change the transcript of the fourth clip."""
    rows = stand_in.rows(split)
    rows[3]["text"] = text
    stand_in.write_rows(split, rows)


def set_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def told_by_both(stand_in: StandIn, *options: str) -> list[str]:
    """The faults that a run finds before it writes anything, which `check` finds as well."""
    found = refused(stand_in, *options)
    checked = faults(invoke("check", stand_in.recipe, *options))
    assert [fault.replace(f"{stand_in.root}/", "") for fault in checked] == found
    return found


# Languages -----------------------------------------------------------------------------------

SERVES_NOT = "model: cannot serve 'asr-seq2seq': "


@pytest.mark.parametrize(
    ("name", "language", "fault"),
    [
        (MANY, "null", "it is multilingual: set task.language, e.g. en"),
        (MANY, "xx", "it has no language 'xx': set task.language to one of de, en, fr"),
        (MANY, "dee",
         "it has no language 'dee' (did you mean 'de'?): set task.language to one of de, en, fr"),
        (MANY, "spanish", "it has no language 'spanish': set task.language to one of de, en, fr"),
        (WHISPER, "en", "it is not multilingual: leave task.language out"),
        (MOONSHINE, "en", "it is not multilingual: leave task.language out"),
    ],
)  # fmt: skip
def test_languages(stand_in_of: Make, name: str, language: str, fault: str) -> None:
    found = told_by_both(stand_in_of(name), "--set", f"task.language={language}")
    assert found == [SERVES_NOT + fault]


@pytest.mark.parametrize("missing", ["lang_to_id", "task_to_id"])
def test_generation_settings_without_languages(stand_in_of: Make, missing: str) -> None:
    stand_in = stand_in_of(MANY)
    set_json(stand_in.model / "generation_config.json", lambda content: content.pop(missing))
    assert told_by_both(stand_in) == [
        SERVES_NOT + "it is multilingual, but its generation_config.json lacks lang_to_id or "
        "task_to_id: take that file from the checkpoint it was made of"
    ]


# Transcripts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["calibration", "validation"])
@pytest.mark.parametrize("text", ["", " \t "])
def test_empty_transcripts(stand_in_of: Make, split: str, text: str) -> None:
    stand_in = stand_in_of(MOONSHINE)
    set_text(stand_in, split, text)
    assert told_by_both(stand_in) == [f"{split}.jsonl:4: 'text' is empty"]


def test_validation_without_a_single_word(stand_in_of: Make) -> None:
    stand_in = stand_in_of(WHISPER)
    rows = stand_in.rows("validation")
    stand_in.write_rows("validation", [{**row, "text": "[noise]"} for row in rows])
    assert told_by_both(stand_in) == [
        "validation: no transcript has a word in it once normalised: "
        "there is no word error rate without"
    ]


def test_silence_in_validation_is_measured(stand_in_of: Make, tmp_path: Path) -> None:
    """A transcript that holds a remark and no word: what is said of that clip counts as errors."""
    stand_in = stand_in_of(MOONSHINE)
    set_text(stand_in, "validation", "[silence]")
    quick = ("--set", "attribution={method: magnitude}", "--set", "calibration.samples=4", *FEW)
    result = run(stand_in, "--json", *quick)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metric"]["n"] == 4


def without_bytes(content: dict[str, Any]) -> None:
    content["model"]["byte_fallback"] = False


def test_letters_the_tokenizer_does_not_know(stand_in_of: Make) -> None:
    stand_in = stand_in_of(MOONSHINE)
    set_json(stand_in.model / "tokenizer.json", without_bytes)
    set_text(stand_in, "calibration", "one Zoë two Käse")
    assert told_by_both(stand_in) == [
        "calibration: calibration/3.wav: the tokenizer cannot encode Zoë, Käse "
        "in 'one Zoë two Käse'"
    ]


def test_transcripts_longer_than_the_decoder(stand_in_of: Make) -> None:
    """40 positions: the start, one that steers, and 38 characters, of which a space is one."""
    stand_in = stand_in_of(WHISPER)
    set_text(stand_in, "calibration", "a" * 37)
    assert invoke("check", stand_in.recipe).exit_code == 0
    set_text(stand_in, "calibration", "a" * 38)
    assert told_by_both(stand_in) == [
        "calibration: calibration/3.wav: the transcript takes 41 tokens, more than the 40 the "
        "decoder has positions for: cut the clip into shorter ones"
    ]


@pytest.mark.slow
def test_the_longest_transcript_can_be_scored(stand_in_of: Make) -> None:
    stand_in = stand_in_of(WHISPER)
    set_text(stand_in, "calibration", "a" * 37)
    result = run(stand_in, "--quiet", "--set", "attribution={method: occlusion}")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("name", "most"), [(WHISPER, 38), (MANY, 36)])
def test_more_tokens_than_the_decoder_has_positions(
    stand_in_of: Make, name: str, most: int
) -> None:
    """Beside the start, one token steers the first, and three the second."""
    stand_in = stand_in_of(name)
    assert told_by_both(stand_in, "--set", f"task.max_new_tokens={most + 1}") == [
        f"{SERVES_NOT}its decoder has positions for 40 tokens, {40 - most} of them taken before "
        f"it speaks: set task.max_new_tokens to at most {most}, not {most + 1}"
    ]
    # As many as fit are what transformers lets it say.
    quick = ("--set", "attribution={method: magnitude}", "--set", "calibration.samples=4", *FEW)
    result = run(
        stand_in, "--quiet", "--set", f"task.max_new_tokens={most}", *quick,
        "--set", "validation.limit=2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


# Clips ---------------------------------------------------------------------------------------


def make_long(clip: Path) -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=3 * SAMPLING_RATE // 2)
    soundfile.write(clip, noise, SAMPLING_RATE)


@pytest.mark.parametrize("split", ["calibration", "validation"])
def test_clips_longer_than_the_window(stand_in_of: Make, split: str) -> None:
    stand_in = stand_in_of(WHISPER)
    make_long(stand_in.clip(split, 0))
    (fault,) = refused(stand_in)
    assert fault.startswith(f"{split}: 1 of the first ")
    assert f": {split}/0.wav: longer than 1 s (1.5 s); mend or remove them" in fault


def test_predict_refuses_what_the_window_would_cut(
    stand_in_of: Make, finished: Callable[[str], Path]
) -> None:
    stand_in = stand_in_of(WHISPER)
    long, short = (stand_in.clip("validation", number) for number in (0, 1))
    make_long(long)
    result = invoke("predict", finished(WHISPER), long, short)
    assert (result.exit_code, result.stderr) == (2, f"error: {long}: longer than 1 s (1.5 s)\n")
    assert result.stdout.startswith(f"{short}: ")


def test_models_on_waveforms_have_no_window(
    stand_in_of: Make, finished: Callable[[str], Path]
) -> None:
    long = stand_in_of(MOONSHINE).clip("validation", 0)
    make_long(long)
    assert invoke("predict", finished(MOONSHINE), long).exit_code == 0


# Nothing lost --------------------------------------------------------------------------------


def test_a_clip_the_model_is_silent_about_loses_nothing(stand_in_of: Make) -> None:
    """Found once the model has spoken; what was measured until then is taken up again."""
    stand_in = stand_in_of(MOONSHINE)
    result = run(stand_in, *FEW, *ONE_STEP, "--set", "calibration.labels=model")
    (fault,) = faults(result)
    clip, rest = fault.removeprefix("calibration: ").split(": ", 1)
    assert clip.startswith("calibration/")
    assert rest == (
        "what the model says of it is no target for it: the transcript is empty: "
        "leave it out or set calibration.labels: dataset"
    )
    output = stand_in.root / "out"
    kept = sorted(path.name for path in (output / "steps").glob("*.json"))
    assert kept == ["export-original.json", "label.json", "measure-original.json"]
    assert not list(output.rglob("*.partial*"))
    result = run(stand_in, "--quiet", *FEW, *ONE_STEP)
    assert result.exit_code == 0, result.output
    steps = [line.split()[:2] for line in result.stdout.splitlines()]
    assert ["original", "done"] in steps
    assert ["attribute", "done"] not in steps
