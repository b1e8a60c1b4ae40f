"""Manifests and class directories: what is read, and the exact text of every complaint."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from data_standins import write_clip
from pydantic import ValidationError

from hibprune.data import (
    AudioFile,
    ContentFault,
    DurationLimits,
    Folder,
    Manifest,
    TargetFields,
    overlap,
    probe_seconds,
)
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
        ('{"audio": "b.wav", "label": 1.5}', ":2: 'label' is 1.5; write it as text"),
        ('{"audio": "b.wav", "label": 2.0}', ":2: 'label' is 2.0; write it as 2"),
        ('{"audio": "b.wav", "label": true}', ":2: 'label' is true; write it as text"),
        ('{"audio": 3, "label": "no"}', ":2: 'audio' is 3; write it as text"),
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


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"audio": "b.wav", "label": ' + "7" * 5000 + "}",
         ":2: holds a number of thousands of digits"),
        ('{"audio": "b.wav", "label": "yes", "speaker": [-' + "7" * 5000 + "]}",
         ":2: holds a number of thousands of digits"),
        ('{"audio": "b.wav", "label": "yes", "label": "no"}', ":2: 'label' is given twice"),
        ('{"audio": "b.wav", "label": "' + "x" * 1_000_000 + '"}',
         ":2: a line of more than 1,000,000 characters"),
        ('{"audio": "b.wav", "label": ["' + "x" * 900_000 + '"]}',
         f""":2: 'label' is ["{"x" * 77}…; write it as text"""),
        ('{"' + "x" * 900_000 + '": 1}', f":2: no 'audio'; the line has {'x' * 79}…"),
        ('{"audio": "../' + "x" * 900_000 + '", "label": "yes"}',
         f":2: '../{'x' * 75}… is no path inside {{root}}; "
         "set 'root' to a directory above it"),
        ('{"audio": "b.wav", "label": "half \\ud83d"}', ":2: 'label' holds half a character"),
        ('{"audio": "half \\ud83d.wav", "label": "yes"}', ":2: 'audio' holds half a character"),
        ("[" * 100_000, ":2: not JSON; write one object a line"),
    ],
)  # fmt: skip
def test_json_lines_without_bounds(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav", "label": "yes"}\n' + line + "\n")
    told = complaint(manifest("m.jsonl"), tmp_path)
    assert told == f"{tmp_path / 'm.jsonl'}{expected}".replace("{root}", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("audio,text\na.wav,Hello, world\n",
         ":2: has more fields than the header has columns; put texts with commas in double quotes"),
        ("audio,text,text\na.wav,one,two\n", ":1: column 'text' is there twice"),
        ("audio,text\na.wav," + "x" * 1_000_000 + "\n",
         ":2: a line of more than 1,000,000 characters"),
        ("audio,text\na.wav," + "x" * 900_000 + "\n",
         ":2: not CSV: field larger than field limit (131072)"),
        ('audio,text\na.wav,"one\n', ":2: not CSV: unexpected end of data"),
        (",".join("x" * 9 for _ in range(9_000)) + "\n", ":1: no column 'audio'; its columns are "
         + ("x" * 9 + ", ") * 7 + "xx…"),
    ],
)  # fmt: skip
def test_csv_without_bounds_or_with_more_than_is_read(
    tmp_path: Path, text: str, expected: str
) -> None:
    (tmp_path / "m.csv").write_text(text)
    assert complaint(manifest("m.csv"), tmp_path, TEXT) == f"{tmp_path / 'm.csv'}{expected}"


def test_a_number_of_thousands_of_digits_in_csv_is_a_word_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"audio,text,speaker\na.wav,hello,{'7' * 5000}\n")
    (found,) = manifest("m.csv").utterances(TEXT, tmp_path)
    assert found.target == "hello"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_manifests_that_are_no_files(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"directory{suffix}").mkdir()
    (tmp_path / f"huge{suffix}").touch()
    os.truncate(tmp_path / f"huge{suffix}", 2**40)
    for name, read, checked in (
        ("pipe", "cannot be read: a pipe, not a file", "is a pipe or a device, not a file"),
        ("zero", "cannot be read: a device, not a file", "is a pipe or a device, not a file"),
        ("loop", "cannot be read: too many levels of symbolic links", None),
        ("directory", "cannot be read: is a directory", "is a directory, not a file"),
        ("huge", "cannot be read: larger than 268 MB", ""),
        ("x" * 300, "cannot be read: file name too long", None),
    ):
        source = manifest(f"{name}{suffix}")
        path = tmp_path / f"{name}{suffix}"
        assert complaint(source, tmp_path) == f"{path}: {read}"
        lines = [] if checked == "" else [f"{path}: {checked or read}"]
        assert source.problems(tmp_path) == lines


def test_what_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a directory above lets no one through; root is let through anywhere."""
    (tmp_path / "m.csv").write_text("audio,label\na.wav,yes\n")
    stat = Path.stat

    def refusing(path: Path, **options: bool) -> os.stat_result:
        if path.name in ("m.csv", "clips"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refusing)
    closed = manifest("m.csv")
    assert closed.problems(tmp_path) == [f"{tmp_path / 'm.csv'}: cannot be read: permission denied"]
    assert not closed.at_hand(tmp_path)
    assert complaint(closed, tmp_path) == f"{tmp_path / 'm.csv'}: cannot be read: permission denied"
    folder = Folder(kind="folder", path="clips")
    assert folder.problems(tmp_path) == [f"{tmp_path / 'clips'}: permission denied"]
    assert complaint(folder, tmp_path) == f"{tmp_path / 'clips'}: permission denied"


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("audio,label\na.wav,yes\n")
    assert manifest("m.csv", root="m.csv").problems(tmp_path) == [
        f"{tmp_path / 'm.csv'}: not a directory (root of m.csv)"
    ]


def test_a_home_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^~nobody-here/m\.csv: no such user on this machine"):
        manifest("~nobody-here/m.csv").utterances(LABEL, tmp_path)


def test_json_can_name_files_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    write_clip(tmp_path / "clip.wav", 500).rename(tmp_path / name)
    line = json.dumps({"audio": name, "label": "yes"})
    assert "\\udce9" in line
    (tmp_path / "m.jsonl").write_text(line)
    (found,) = manifest("m.jsonl").utterances(LABEL, tmp_path)
    assert found.id == "caf\\xe9.wav"
    assert found.content == AudioFile(tmp_path / name)
    assert probe_seconds(found.content, DurationLimits()) == 0.5


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


def test_a_folder_names_what_it_passes_over(tmp_path: Path) -> None:
    top = tmp_path / "clips"
    for name in ("yes/a.WAV", "yes/b.Mp3", "no/c.oGG", "no/.d.wav", ".trash/e.wav"):
        write_clip(tmp_path / "written.wav").rename(make_parent(top / name))
    for name in ("yes/f.m4a", "no/g.AMR", "no/notes.txt", "LICENSE"):
        (top / name).write_text("not read")
    (top / "yes" / "again").symlink_to(top / "no")
    listing = Folder(kind="folder", path="clips").listing(LABEL, tmp_path)
    assert [one.id for one in listing.utterances] == ["no/c.oGG", "yes/a.WAV", "yes/b.Mp3"]
    unread = "not a format that is read here: convert it to WAV or FLAC"
    assert listing.passed_over == (
        (".trash/e.wav", "hidden, by a name with a dot in front"),
        ("no/.d.wav", "hidden, by a name with a dot in front"),
        ("no/g.AMR", unread),
        ("yes/again", "a link to a directory, which is not followed"),
        ("yes/f.m4a", unread),
    )


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_links_in_a_folder(tmp_path: Path) -> None:
    """Those to files are followed and judged when read, a loop of directories is not entered."""
    write_clip(tmp_path / "elsewhere.wav", 500)
    (tmp_path / "clips" / "yes").mkdir(parents=True)
    for name, target in (
        ("out.wav", tmp_path / "elsewhere.wav"),
        ("gone.wav", "nowhere"),
        ("loop.wav", "loop.wav"),
        ("zero.wav", "/dev/zero"),
        ("up", ".."),
    ):
        (tmp_path / "clips" / "yes" / name).symlink_to(target)
    listing = Folder(kind="folder", path="clips").listing(LABEL, tmp_path)
    told = {}
    for one in listing.utterances:
        try:
            told[one.id] = probe_seconds(one.content, DurationLimits())
        except ContentFault as fault:
            told[one.id] = fault.reason
    assert told == {
        "yes/gone.wav": "missing",
        "yes/loop.wav": "too many levels of symbolic links",
        "yes/out.wav": 0.5,
        "yes/zero.wav": "a device, not a file",
    }
    assert overlap(listing.utterances[:2], listing.utterances[1:]) == [
        ("yes/loop.wav", "yes/loop.wav")
    ]


def test_a_folder_with_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """Identifiers and labels are text that JSON, logs and terminals take."""
    directory = tmp_path / "clips" / os.fsdecode(b"\xfcber")
    path = make_parent(directory / os.fsdecode(b"caf\xe9.wav"))
    write_clip(tmp_path / "written.wav").rename(path)
    (found,) = Folder(kind="folder", path="clips").utterances(LABEL, tmp_path)
    assert (found.id, found.target) == ("\\xfcber/caf\\xe9.wav", "\\xfcber")
    assert found.id.encode("utf-8")
    assert found.content == AudioFile(path)


def test_a_folder_that_cannot_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "clips" / "yes" / "a.wav")
    (tmp_path / "clips" / "no").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "no":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    source = Folder(kind="folder", path="clips")
    assert complaint(source, tmp_path) == (
        f"{tmp_path / 'clips' / 'no'}: cannot be looked into: permission denied"
    )
    assert Folder(kind="folder", path="clips/no").problems(tmp_path) == [
        f"{tmp_path / 'clips' / 'no'}: permission denied"
    ]
    (tmp_path / "file").touch()
    assert Folder(kind="folder", path="file").problems(tmp_path) == [
        f"{tmp_path / 'file'}: not a directory"
    ]
