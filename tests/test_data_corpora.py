"""Each torchaudio corpus on a stand-in of the published layout, and what is said when it lacks."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.error import URLError

import data_standins
import pytest
from pydantic import TypeAdapter

from hibprune.data import (
    AudioFile,
    DataSource,
    DurationLimits,
    TargetFields,
    Utterance,
    overlap,
    read_waveform,
)
from hibprune.errors import UserError

LABEL = TargetFields("label")
TEXT = TargetFields("text")
SLOTS = TargetFields("slots", ("action", "object", "location"))


def source(kind: str, **options: Any) -> Any:
    return TypeAdapter(DataSource).validate_python({"kind": kind, "root": "corpora", **options})


def readable(utterances: list[Utterance]) -> bool:
    return all(
        len(read_waveform(one.content, 16_000, DurationLimits())) >= 8000 for one in utterances
    )


def test_speech_commands(tmp_path: Path) -> None:
    data_standins.speech_commands(tmp_path / "corpora")
    testing = source("speechcommands", subset="testing", unknown_clips=3, silence_clips=4)
    assert testing.at_hand(tmp_path)
    found = testing.utterances(LABEL, tmp_path)
    assert Counter(one.target for one in found) == {
        "yes": 2,
        "stop": 2,
        "_unknown_": 3,
        "_silence_": 4,
    }
    assert found[0].id == "speech_commands_v0.01/yes/cccc0001_nohash_0.wav"
    assert readable(found[:7])
    silences = [one.content for one in found if one.target == "_silence_"]
    assert all(len(read_waveform(one, 16_000, DurationLimits())) == 16_000 for one in silences)


def test_speech_commands_subsets_share_nothing(tmp_path: Path) -> None:
    data_standins.speech_commands(tmp_path / "corpora", "v0.02")
    subsets = [
        source("speechcommands", version="v0.02", subset=subset, silence_clips=9).utterances(
            LABEL, tmp_path
        )
        for subset in ("training", "validation", "testing")
    ]
    assert all(readable(found) for found in subsets)
    assert [one[0].id.split("/")[2][:4] for one in subsets] == ["aaaa", "bbbb", "cccc"]
    for number, one in enumerate(subsets):
        for other in subsets[number + 1 :]:
            assert overlap(one, other) == []


def test_speech_commands_takes_a_tenth_of_unknown_words_and_of_silence(tmp_path: Path) -> None:
    root = data_standins.speech_commands(tmp_path / "corpora")
    words = root / "SpeechCommands" / "speech_commands_v0.01"
    for number in range(16):
        data_standins.write_clip(words / "go" / f"aaaa{number:04d}_nohash_0.wav")
    training = source("speechcommands", subset="training")
    counts = Counter(one.target for one in training.utterances(LABEL, tmp_path))
    assert counts == {"yes": 2, "stop": 2, "go": 16, "_unknown_": 2, "_silence_": 2}
    again = training.utterances(LABEL, tmp_path)
    assert [one.id for one in again] == [one.id for one in training.utterances(LABEL, tmp_path)]
    bare = source("speechcommands", subset="training", unknown=None, silence=None)
    assert {one.target for one in bare.utterances(LABEL, tmp_path)} == {"yes", "stop", "go"}


def test_librispeech(tmp_path: Path) -> None:
    data_standins.librispeech(tmp_path / "corpora")
    corpus = source("librispeech", subset="test-clean")
    assert corpus.at_hand(tmp_path)
    assert not source("librispeech", subset="dev-clean").at_hand(tmp_path)
    found = corpus.utterances(TEXT, tmp_path)
    assert [(one.id, one.target) for one in found] == [
        (
            "test-clean/1089/134686/1089-134686-0000.flac",
            "HE HOPED THERE WOULD BE STEW FOR DINNER",
        ),
        (
            "test-clean/1089/134686/1089-134686-0001.flac",
            "STUFF IT INTO YOU HIS BELLY COUNSELLED HIM",
        ),
        ("test-clean/121/121726/121-121726-0000.flac", "ALSO A POPULAR CONTRIVANCE"),
    ]
    assert readable(found)


def test_fluent_speech_commands(tmp_path: Path) -> None:
    data_standins.fluent_speech_commands(tmp_path / "corpora")
    corpus = source("fluent", subset="test")
    assert corpus.at_hand(tmp_path)
    found = corpus.utterances(SLOTS, tmp_path)
    assert [one.target for one in found] == [
        {"action": "activate", "object": "lights", "location": "none"},
        {"action": "change language", "object": "Korean", "location": "none"},
        {"action": "increase", "object": "heat", "location": "kitchen"},
    ]
    assert readable(found)
    assert corpus.utterances(TEXT, tmp_path)[2].target == "Heat up, in the kitchen"
    with pytest.raises(UserError, match="fluent test: no slot 'room'; it has action, object"):
        corpus.utterances(TargetFields("slots", ("room",)), tmp_path)


def test_voxceleb1(tmp_path: Path) -> None:
    data_standins.voxceleb1(tmp_path / "corpora")
    subsets = {
        subset: source("voxceleb1", subset=subset).utterances(LABEL, tmp_path)
        for subset in ("train", "dev", "test")
    }
    assert [(one.id, one.target) for one in subsets["test"]] == [
        ("id10001/y8E_1ndLPDE/00001.wav", "id10001"),
        ("id11251/y8E_1ndLPDE/00001.wav", "id11251"),
    ]
    assert all(len(found) == 2 and readable(found) for found in subsets.values())


CORPORA = [
    ("speechcommands", {"subset": "testing"}, LABEL),
    ("librispeech", {"subset": "train-clean-100"}, TEXT),
    ("fluent", {"subset": "train"}, SLOTS),
    ("voxceleb1", {"subset": "train"}, LABEL),
]


@pytest.mark.parametrize(("kind", "options", "fields"), CORPORA)
def test_an_absent_corpus_is_a_plain_error_with_what_to_fetch(
    kind: str, options: dict[str, str], fields: TargetFields, tmp_path: Path
) -> None:
    corpus = source(kind, **options)
    with pytest.raises(UserError, match=r"^/\S+: not found; (unpack|get) \S+"):
        corpus.utterances(fields, tmp_path)
    assert corpus.problems(tmp_path, offline=True) == []
    assert not corpus.at_hand(tmp_path)
    assert corpus.problems(tmp_path, offline=False) == [
        f"{tmp_path / 'corpora'}: no such directory (root of the corpus)"
    ]


@pytest.mark.parametrize(("kind", "options", "fields"), CORPORA)
def test_a_task_that_wants_something_else(
    kind: str, options: dict[str, str], fields: TargetFields, tmp_path: Path
) -> None:
    other = LABEL if fields is not LABEL else TEXT
    with pytest.raises(UserError, match=r", but the task needs (one label|a text) per clip; "):
        source(kind, **options).utterances(other, tmp_path)


def test_voxceleb1_never_fetches_the_split_list_unasked(tmp_path: Path) -> None:
    root = data_standins.voxceleb1(tmp_path / "corpora")
    assert source("voxceleb1", subset="train").at_hand(tmp_path)
    (root / "iden_split.txt").unlink()
    assert not source("voxceleb1", subset="train").at_hand(tmp_path)
    with pytest.raises(UserError, match=r"iden_split\.txt: not found; unpack vox1"):
        source("voxceleb1", subset="train").utterances(LABEL, tmp_path)


def test_a_damaged_corpus_is_a_plain_error(tmp_path: Path) -> None:
    root = data_standins.librispeech(tmp_path / "corpora")
    (transcripts,) = root.rglob("1089-134686.trans.txt")
    transcripts.write_text("1089-134686-0000 HE HOPED\n")
    with pytest.raises(
        UserError, match="cannot be used as the published corpus: Translation not found"
    ):
        source("librispeech", subset="test-clean").utterances(TEXT, tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "fields"), [row for row in CORPORA if row[0] != "fluent"]
)
def test_a_download_that_fails_is_a_plain_error(
    kind: str,
    options: dict[str, str],
    fields: TargetFields,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no network")

    for module in ("speechcommands", "librispeech", "voxceleb1"):
        monkeypatch.setattr(f"torchaudio.datasets.{module}.download_url_to_file", refuse)
    corpus = source(kind, **options, download=True)
    assert corpus.problems(tmp_path) == []
    with pytest.raises(UserError, match="published corpus: <urlopen error no network>"):
        corpus.utterances(fields, tmp_path)


def test_silence_needs_the_noise_recordings(tmp_path: Path) -> None:
    root = data_standins.speech_commands(tmp_path / "corpora")
    for recording in root.rglob("_background_noise_/*.wav"):
        recording.unlink()
    corpus = source("speechcommands", subset="testing", silence_clips=2)
    with pytest.raises(UserError, match="no noise recordings to cut silence from"):
        corpus.utterances(LABEL, tmp_path)


def test_noise_clips_are_segments_of_the_recording(tmp_path: Path) -> None:
    data_standins.speech_commands(tmp_path / "corpora")
    corpus = source("speechcommands", subset="validation", silence_clips=5)
    silences = [one for one in corpus.utterances(LABEL, tmp_path) if one.target == "_silence_"]
    # 12 s recordings: validation owns 4 s to 8 s, so one-second clips start between 4 s and 7 s.
    starts: dict[str, list[float]] = {}
    for one in silences:
        assert isinstance(one.content, AudioFile)
        starts.setdefault(one.content.path.stem, []).append(one.content.start_seconds)
    assert starts == {"pink_noise": [4.0, 5.5, 7.0], "running_tap": [4.033, 5.549]}
    assert silences[2].id == "speech_commands_v0.01/_background_noise_/pink_noise.wav@5.500s"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "kind", "options", "fields", "listing"),
    [
        (data_standins.voxceleb1, "voxceleb1", {"subset": "train"}, LABEL, "iden_split.txt"),
        (data_standins.speech_commands, "speechcommands", {"subset": "testing"}, LABEL,
         "SpeechCommands/speech_commands_v0.01/testing_list.txt"),
        (data_standins.fluent_speech_commands, "fluent", {"subset": "test"}, TEXT,
         "fluent_speech_commands_dataset/data/test_data.csv"),
        (data_standins.librispeech, "librispeech", {"subset": "test-clean"}, TEXT,
         "LibriSpeech/test-clean/1089/134686/1089-134686.trans.txt"),
    ],
)  # fmt: skip
def test_lists_that_are_no_files_or_lead_elsewhere(
    tmp_path: Path,
    make: Any,
    kind: str,
    options: dict[str, str],
    fields: TargetFields,
    listing: str,
) -> None:
    make(tmp_path / "corpora")
    path = tmp_path / "corpora" / listing
    text = path.read_text()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"a pipe or a device, not a file: take it out$"):
        source(kind, **options).utterances(fields, tmp_path)
    path.unlink()
    if kind != "librispeech":  # Its clips are found, not listed.
        # Before each path or, where a path is made of it, the speaker.
        path.write_text(
            re.sub(r"(id1\d+/|yes/|,4BrX|,5o9B)", r"../../../../\1", text).replace(
                "../../../../,", ",../../../../"
            )
        )
        with pytest.raises(UserError, match=r"is no path inside it$"):
            source(kind, **options).utterances(fields, tmp_path)
    path.write_bytes(b"\xff\xfe\x00" * 100)
    with pytest.raises(UserError, match=r"^[^\n]*cannot be used as the published corpus"):
        source(kind, **options).utterances(fields, tmp_path)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "corpora").touch()
    assert source("librispeech", subset="test-clean").problems(tmp_path) == [
        f"{tmp_path}/corpora: not a directory (root of the corpus)"
    ]
