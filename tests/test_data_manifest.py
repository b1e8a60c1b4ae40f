"""Manifests and class directories: what is read, and the exact text of every complaint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_standins import write_clip
from pydantic import ValidationError

from hibprune.data import AudioFile, Folder, Manifest, TargetFields
from hibprune.errors import UserError

LABEL = TargetFields("label")
TEXT = TargetFields("text")
SLOTS = TargetFields("slots", ("action", "object"))


def manifest(path: str, **options: object) -> Manifest:
    return Manifest.model_validate({"kind": "manifest", "path": path, **options})


def complaint(source: Manifest | Folder, base: Path, fields: TargetFields = LABEL) -> str:
    with pytest.raises(UserError) as error:
        source.utterances(fields, base)
    return str(error.value)


def test_json_lines(tmp_path: Path) -> None:
    rows = [
        {"audio": "clips/a.wav", "label": "yes", "speaker": 7},
        {"audio": "./clips/größe 2.wav", "label": "Größe"},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
    found = manifest("m.jsonl").utterances(LABEL, tmp_path)
    assert [(one.id, one.target) for one in found] == [
        ("clips/a.wav", "yes"),
        ("clips/größe 2.wav", "Größe"),
    ]
    assert found[0].content == AudioFile(tmp_path / "clips" / "a.wav")


def test_csv_from_windows(tmp_path: Path) -> None:
    text = 'audio,text\r\na.wav,"Hello, world"\r\nb.wav,Ünïcode 字\r\n'
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    found = manifest("m.csv").utterances(TEXT, tmp_path)
    assert [one.target for one in found] == ["Hello, world", "Ünïcode 字"]


def test_slots_root_and_column_names(tmp_path: Path) -> None:
    text = "path,action,thing\nx/a.wav,change language,Korean\n"
    (tmp_path / "m.csv").write_text(text)
    source = manifest("m.csv", root="audio", audio="path", slots={"object": "thing"})
    (found,) = source.utterances(SLOTS, tmp_path)
    assert found.target == {"action": "change language", "object": "Korean"}
    assert found.content == AudioFile(tmp_path / "audio" / "x" / "a.wav")


def test_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav"}\n')
    (found,) = manifest("m.jsonl", labelled=False).utterances(LABEL, tmp_path)
    assert found.target is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{audio: a.wav}", ":2: not JSON; write one object a line"),
        ('["a.wav", "yes"]', ":2: not a JSON object; write one object a line"),
        ('{"label": "yes"}', ":2: no 'audio'; the line has label"),
        ('{"audio": "b.wav"}', ":2: no 'label'; the line has audio"),
        ('{"audio": "b.wav", "label": null}', ":2: no 'label'; the line has audio"),
        ('{"audio": "b.wav", "label": " "}', ":2: 'label' is empty"),
        ('{"audio": "", "label": "yes"}', ":2: 'audio' is empty"),
        ('{"audio": "b.wav", "label": 3}', ":2: 'label' is 3; write it as text"),
        (
            '{"audio": "x/../a.wav", "label": "no"}',
            ":2: a.wav is listed already in line 1",
        ),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "label": "yes"}\n' + line + "\n")
    assert complaint(manifest("m.jsonl"), tmp_path) == f"{tmp_path / 'm.jsonl'}{expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("audio,word\na.wav,yes\n", ":1: no column 'label'; its columns are audio, word"),
        ("audio,label\na.wav,yes\nb.wav\n", ":3: no 'label'; the line has audio"),
        ("audio,label\na.wav,\n", ":2: 'label' is empty"),
        ("audio,label\n", ": lists no clips"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    assert complaint(manifest("m.csv"), tmp_path) == f"{tmp_path / 'm.csv'}{expected}"


@pytest.mark.parametrize("name", ["../secret.wav", "/etc/passwd", "clips/../../x", "a\0.wav"])
def test_paths_stay_inside_the_root(tmp_path: Path, name: str) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"audio": name, "label": "yes"}))
    assert complaint(manifest("m.jsonl"), tmp_path) == (
        f"{tmp_path / 'm.jsonl'}:1: {name!r} is no path inside {tmp_path}; "
        "set 'root' to a directory above it"
    )


def test_absolute_paths_inside_the_root_are_named_relative_to_it(tmp_path: Path) -> None:
    line = {"audio": str(tmp_path / "clips" / "a.wav"), "label": "yes"}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    (found,) = manifest("m.jsonl").utterances(LABEL, tmp_path)
    assert found.id == "clips/a.wav"


def test_bad_files(tmp_path: Path) -> None:
    assert complaint(manifest("m.csv"), tmp_path) == f"{tmp_path / 'm.csv'}: no such manifest"
    assert complaint(manifest("m.txt"), tmp_path) == (
        f"{tmp_path / 'm.txt'}: not a manifest; its name must end in .jsonl or .csv"
    )
    (tmp_path / "m.csv").write_bytes("audio,label\na.wav,größe\n".encode("latin-1"))
    assert complaint(manifest("m.csv"), tmp_path) == (
        f"{tmp_path / 'm.csv'}: not UTF-8 text; save the manifest as UTF-8"
    )


def test_a_slot_the_task_does_not_have(tmp_path: Path) -> None:
    source = manifest("m.csv", slots={"place": "location"})
    assert complaint(source, tmp_path, SLOTS) == (
        "slots: the task has no slot 'place'; its slots are action, object"
    )


def test_problems_of_manifests_are_told_offline_too(tmp_path: Path) -> None:
    missing = [f"{tmp_path / 'm.csv'}: no such manifest"]
    assert manifest("m.csv").problems(tmp_path, offline=True) == missing
    (tmp_path / "m.csv").touch()
    assert manifest("m.csv").problems(tmp_path) == []
    assert manifest("m.csv", root="audio").problems(tmp_path) == [
        f"{tmp_path / 'audio'}: no such directory (root of m.csv)"
    ]


def test_unknown_options_are_errors() -> None:
    with pytest.raises(ValidationError, match="lable"):
        manifest("m.csv", lable="word")


def test_folder(tmp_path: Path) -> None:
    for name in ("yes/b.wav", "yes/a.flac", "_silence_/n/c.WAV", ".trash/d.wav"):
        write_clip(tmp_path / name)
    (tmp_path / "yes" / "notes.txt").write_text("not a clip")
    (tmp_path / "LICENSE").write_text("CC0")
    source = Folder(kind="folder", path=str(tmp_path))
    assert [(one.id, one.target) for one in source.utterances(LABEL, Path())] == [
        ("_silence_/n/c.WAV", "_silence_"),
        ("yes/a.flac", "yes"),
        ("yes/b.wav", "yes"),
    ]
    assert complaint(source, Path(), TEXT) == (
        f"{tmp_path}: has a label per directory, but the task needs a text per clip; "
        "choose another data source or task"
    )


def test_folder_with_stray_clips(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav")
    assert complaint(Folder(kind="folder", path="."), tmp_path) == (
        f"{tmp_path / 'a.wav'}: lies outside the class directories; "
        "move it into its class's or set 'labelled: false'"
    )
    (found,) = Folder(kind="folder", path=".", labelled=False).utterances(TEXT, tmp_path)
    assert (found.id, found.target) == ("a.wav", None)


def test_folder_missing_or_empty(tmp_path: Path) -> None:
    source = Folder(kind="folder", path="clips")
    assert source.problems(tmp_path, offline=True) == [f"{tmp_path / 'clips'}: no such directory"]
    assert complaint(source, tmp_path) == f"{tmp_path / 'clips'}: no such directory"
    (tmp_path / "clips").mkdir()
    assert complaint(source, tmp_path).startswith(f"{tmp_path / 'clips'}: holds no sound files")
