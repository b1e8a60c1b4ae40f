"""The command line from inside a working directory: relative recipes, and names of any bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest
from commands import invoke
from standin import LABELS, StandIn

from hibprune.records.manifest import Manifest

MAGNITUDE = "--set=attribution={method: magnitude}"


@pytest.fixture
def words(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Clips in class directories below `audiofolder`, and as many others beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number, row in enumerate(stand_in.rows("calibration")):
        for top in ("audiofolder", "sibling"):
            path = stand_in.root / top / "train" / row["label"] / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            source = stand_in.clip("calibration" if top == "audiofolder" else "validation", number)
            shutil.copy(source, path)
    return stand_in


@pytest.mark.parametrize("inside", [".", "above", "elsewhere"])
@pytest.mark.parametrize("path", ["audiofolder", "./audiofolder", "audiofolder/train"])
def test_a_data_set_is_that_of_the_recipe(
    words: StandIn, monkeypatch: pytest.MonkeyPatch, inside: str, path: str
) -> None:
    """Not what datasets finds where the program runs: there were twice as many clips."""
    place = {".": words.root, "above": words.root.parent, "elsewhere": words.root / "sibling"}
    monkeypatch.chdir(place[inside])
    recipe = os.path.relpath(words.recipe)
    source = f"--set=calibration.source={{kind: datasets, path: {path}}}"
    result = invoke("check", recipe, source, "--json")
    assert result.exit_code == 0, result.output
    data, _ = json.loads(result.stdout)["data"]
    assert (data["inputs"], data["classes"]) == (20, dict.fromkeys(LABELS, 4))


def test_a_run_names_the_files_that_were_passed_over(
    words: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(words.root)
    mixed = Path("audiofolder/train/w0/0.wav").rename("audiofolder/train/w0/0.Wav")
    result = invoke(
        "run", "recipe.yaml", "--output", "out", MAGNITUDE, "--set=calibration.samples=19",
        "--set=calibration.source={kind: datasets, path: audiofolder}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    line = (
        "calibration: passed over (its ending is neither in lower nor in upper case): train/w0/"
        f"{mixed.name}"
    )
    assert line in result.stdout.splitlines()
    assert line in Path("out/run.log").read_text()


def test_names_of_any_bytes_from_the_clip_to_the_manifest(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In identifiers, JSON, log and terminal such bytes stand as text.

    The model is elsewhere: safetensors opens no such path.
    """
    model = shutil.move(stand_in.model, tmp_path / "model")
    root = Path(shutil.move(stand_in.root, tmp_path / os.fsdecode(b"caf\xe9")))
    moved = StandIn(root)
    for number, row in enumerate(moved.rows("validation")):
        path = root / "words" / row["label"] / os.fsdecode(b"%d\xff.wav" % number)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(moved.clip("validation", number), path)
    (root / "words" / "w0" / os.fsdecode(b"bad\xfe.wav")).write_text("not sound")
    monkeypatch.chdir(root)
    output = tmp_path / "out"
    result = invoke(
        "run", "recipe.yaml", "--output", output, MAGNITUDE,
        "--set=validation.source={kind: folder, path: words}",
        "--set=validation.max_unreadable=0.1",
        f"--set=model.source={model}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    line = "skipped validation clip w0/bad\\xfe.wav: not audio that libsndfile can open"
    assert line in result.stdout.splitlines()
    assert line in (output / "run.log").read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json((output / "manifest.json").read_text(encoding="utf-8"))
    assert [clip.id for clip in manifest.validation.skipped] == ["w0/bad\\xfe.wav"]
    said = [path.read_text(encoding="utf-8") for path in (output / "predictions").iterdir()]
    assert all("w1/1\\\\xff.wav" in text for text in said)


def test_a_data_set_in_the_cache_is_not_nowhere(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "cache/owner___my_words/default/0.0.0/abcdef").mkdir(parents=True)
    source = "--set=calibration.source={kind: datasets, path: owner/MyWords}"
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _unreachable)
    result = invoke("check", stand_in.recipe, source)
    assert result.exit_code == 0, result.output
    assert (
        "not checked: calibration: owner/MyWords is in the cache, and the Hub does not answer"
    ) in result.stdout.splitlines()


def _unreachable(*_: object, **__: object) -> None:
    raise ConnectionError("no route")
