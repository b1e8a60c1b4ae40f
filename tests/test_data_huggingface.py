"""Hugging Face data sets in local directories, in each form that `datasets` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from data_standins import write_clip

from hibprune.data import (
    ContentFault,
    DurationLimits,
    HuggingFaceDataset,
    TargetFields,
    Utterance,
    content_digest,
    overlap,
    read_waveform,
)
from hibprune.errors import UserError

LABEL = TargetFields("label")
TEXT = TargetFields("text")
SLOTS = TargetFields("slots", ("action", "object"))


@pytest.fixture(autouse=True)
def caches_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Arrow files out of the home directory, and the network out of the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def source(path: str = "set", **options: Any) -> HuggingFaceDataset:
    return HuggingFaceDataset.model_validate({"kind": "datasets", "path": path, **options})


def clips(tmp_path: Path, count: int = 3) -> list[Path]:
    return [write_clip(tmp_path / "clips" / f"{n}.wav", 300 + 100 * n) for n in range(count)]


def rows(tmp_path: Path, embedded: bool = True, **columns: Any) -> datasets.Dataset:
    """A data set of three clips, as bytes or as paths."""
    audio = [
        {"bytes": path.read_bytes(), "path": None} if embedded else str(path)
        for path in clips(tmp_path)
    ]
    dataset = datasets.Dataset.from_dict({"audio": audio, **columns})
    return dataset.cast_column("audio", datasets.Audio(decode=False))


def waveforms(found: list[Utterance]) -> list[np.ndarray]:
    return [read_waveform(one.content, 16_000, DurationLimits()) for one in found]


def complaint(dataset: HuggingFaceDataset, base: Path, fields: TargetFields = LABEL) -> str:
    with pytest.raises(UserError) as error:
        dataset.utterances(fields, base)
    return str(error.value)


@pytest.mark.parametrize("embedded", [True, False])
def test_saved_to_disk_with_class_names(tmp_path: Path, embedded: bool) -> None:
    names = datasets.ClassLabel(names=["yes", "no", "_silence_"])
    dataset = rows(tmp_path, embedded, label=[2, 0, 1]).cast_column("label", names)
    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "set")
    found = source(split="test").utterances(LABEL, tmp_path)
    assert [(one.id, one.target) for one in found] == [
        ("test:0", "_silence_"),
        ("test:1", "yes"),
        ("test:2", "no"),
    ]
    originals = [write_clip(tmp_path / f"{n}.wav", 300 + 100 * n) for n in range(3)]
    for waveform, original in zip(waveforms(found), originals, strict=True):
        assert np.abs(np.fft.rfft(waveform)).argmax() * 2 == 300 + 100 * int(original.stem)


def test_labels_can_be_renamed(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["yes", "other", "quiet"])
    dataset = rows(tmp_path, label=[2, 0, 1]).cast_column("label", names)
    dataset.save_to_disk(tmp_path / "set")
    renamed = source(label_names={"quiet": "_silence_", 1: "_unknown_"})
    assert [one.target for one in renamed.utterances(LABEL, tmp_path)] == [
        "_silence_",
        "yes",
        "_unknown_",
    ]


def test_an_audio_folder(tmp_path: Path) -> None:
    for name in ("yes/a.wav", "no/b.wav"):
        write_clip(tmp_path / "set" / "train" / name)
    found = source().utterances(LABEL, tmp_path)
    assert sorted(str(one.target) for one in found) == ["no", "yes"]
    assert all(len(waveform) == 8000 for waveform in waveforms(found))


def test_an_audio_folder_with_metadata(tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        write_clip(tmp_path / "set" / name)
    metadata = "file_name,text\na.wav,hello\nb.wav,good bye\n"
    (tmp_path / "set" / "metadata.csv").write_text(metadata)
    found = source().utterances(TEXT, tmp_path)
    assert [one.target for one in found] == ["hello", "good bye"]
    assert all(len(waveform) == 8000 for waveform in waveforms(found))


def test_parquet_with_slots(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    rows(tmp_path, action=["bring"] * 3, item=["shoes", "juice", "socks"]).to_parquet(
        tmp_path / "set" / "train.parquet"
    )
    found = source(slots={"object": "item"}).utterances(SLOTS, tmp_path)
    assert found[1].target == {"action": "bring", "object": "juice"}
    assert len(waveforms(found)) == 3


def test_contents_are_compared_with_files(tmp_path: Path) -> None:
    rows(tmp_path, label=["a", "b", "c"]).save_to_disk(tmp_path / "set")
    first = source().utterances(LABEL, tmp_path)
    second = source(split="train").utterances(LABEL, tmp_path)
    assert overlap(first[:2], second[1:]) == [("train:1", "train:1")]
    assert len({content_digest(one.content) for one in first}) == 3


def test_unlabelled(tmp_path: Path) -> None:
    rows(tmp_path).save_to_disk(tmp_path / "set")
    assert {one.target for one in source(labelled=False).utterances(TEXT, tmp_path)} == {None}


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    rows(tmp_path, keyword=["a", "b", "c"]).save_to_disk(tmp_path / "set")
    assert complaint(source(), tmp_path) == (
        "set (train): no column 'label'; its columns are audio, keyword"
    )
    assert complaint(source(audio="file", label="keyword"), tmp_path) == (
        "set (train): no column 'file'; its columns are audio, keyword"
    )


def test_a_missing_split_names_those_there_are(tmp_path: Path) -> None:
    dataset = rows(tmp_path, label=["a", "b", "c"])
    datasets.DatasetDict({"test": dataset, "dev": dataset}).save_to_disk(tmp_path / "set")
    assert complaint(source(split="train"), tmp_path) == (
        "set: no split 'train'; its splits are test, dev"
    )


def test_a_column_that_is_not_audio(tmp_path: Path) -> None:
    rows(tmp_path, label=[1, 2, 3]).save_to_disk(tmp_path / "set")
    assert complaint(source(audio="label"), tmp_path) == (
        "set (train): column 'label' is Value('int64'); it must hold audio or paths"
    )


@pytest.mark.parametrize("empty", [None, " "])
def test_a_row_without_text(tmp_path: Path, empty: str | None) -> None:
    rows(tmp_path, text=["hello", empty, "you"]).save_to_disk(tmp_path / "set")
    assert complaint(source(), tmp_path, TEXT) == "set (train): row 1: 'text' is empty"


def test_a_row_without_audio(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    missing = datasets.Dataset.from_dict({"audio": [None, str(tmp_path / "gone.wav")]})
    missing.to_parquet(tmp_path / "set" / "train.parquet")
    for one in source(labelled=False).utterances(LABEL, tmp_path):
        with pytest.raises(ContentFault, match=r"^missing$"):
            read_waveform(one.content, 16_000, DurationLimits())


def test_what_is_not_on_disk(tmp_path: Path) -> None:
    assert source("owner/name").problems(tmp_path, offline=True) == []
    assert not source("owner/name").at_hand(tmp_path)
    assert source("./clips").problems(tmp_path, offline=True) == [
        f"{tmp_path / 'clips'}: no such directory"
    ]
    assert complaint(source("./clips"), tmp_path) == f"{tmp_path / 'clips'}: no such directory"


def test_a_directory_without_data_is_a_plain_error(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert complaint(source(), tmp_path).startswith("set (train): cannot be loaded: ")
    assert "\n" not in complaint(source(), tmp_path)


def test_code_in_a_data_set_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "set.py").write_text("raise SystemExit('this code ran')")
    assert complaint(source(), tmp_path).startswith("set (train): cannot be loaded: ")
