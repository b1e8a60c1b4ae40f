"""Where a `datasets` source takes its rows from: the recipe's own data and no others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_standins import write_clip

from hibprune.data import (
    ContentFault,
    DurationLimits,
    HuggingFaceDataset,
    TargetFields,
    probe_seconds,
)
from hibprune.errors import UserError

LABEL = TargetFields("label")
TEXT = TargetFields("text")
LOADERS = [
    "arrow", "audiofolder", "csv", "generator", "imagefolder", "json", "pandas", "parquet", "text",
    "webdataset", "xml",
]  # fmt: skip


@pytest.fixture(autouse=True)
def a_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With clips of no one's in it; caches beside it, and no network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    here = tmp_path / "here"
    for name in ("strange/a.wav", "stranger/b.wav"):
        write_clip(here / name)
    (here / "rows.csv").write_text("audio,label\nx.wav,strange\n")
    monkeypatch.chdir(here)
    return here


def source(path: str, **options: Any) -> HuggingFaceDataset:
    return HuggingFaceDataset.model_validate({"kind": "datasets", "path": path, **options})


def targets(found: HuggingFaceDataset, base: Path, fields: TargetFields = LABEL) -> list[Any]:
    return [one.target for one in found.utterances(fields, base)]


def complaint(found: HuggingFaceDataset, base: Path, fields: TargetFields = LABEL) -> str:
    with pytest.raises(UserError) as error:
        found.utterances(fields, base)
    return str(error.value)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("base", [Path(), Path("recipes"), Path("../here")])
def test_a_directory_named_as_a_loader_is_that_directory(base: Path, name: str) -> None:
    for clip in ("yes/a.wav", "no/b.wav"):
        write_clip(base / name / "train" / clip)
    assert sorted(targets(source(name), base)) == ["no", "yes"]


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_is_no_data_set(name: str) -> None:
    base = Path("recipes")
    expected = (
        f"{base.absolute() / name}: no such directory, and '{name}' is a loader of datasets, not "
        "a data set: give the path of the data, from the recipe's directory"
    )
    assert source(name).problems(base, offline=True) == [expected]
    assert complaint(source(name), base) == expected


@pytest.mark.parametrize("name", ["strange", "superb/strange"])
def test_what_lies_where_the_program_runs_is_not_taken(name: str) -> None:
    write_clip(Path(name) / "yes" / "a.wav")
    (base := Path("recipes")).mkdir()
    place = base.absolute() / name
    expected = (
        f"{place}: no such directory, but there is one where you are, which datasets would take "
        f"for '{name}' on the Hub: write its path from the recipe's directory"
    )
    assert source(name).problems(base) == [expected]
    assert complaint(source(name), base) == expected
    assert len(source(f"../{name}", labelled=False).utterances(LABEL, base)) > 0


def test_a_directory_named_as_a_data_set_on_the_hub_is_that_directory() -> None:
    for clip in ("yes/a.wav", "no/b.wav"):
        write_clip(Path("recipes/superb/ks/train") / clip)
    found = source("superb/ks")
    assert found.at_hand(Path("recipes"))
    assert sorted(targets(found, Path("recipes"))) == ["no", "yes"]


def as_parquet(path: Path, rows: datasets.Dataset) -> None:
    rows.to_parquet(path)


def as_arrow(path: Path, rows: datasets.Dataset) -> None:
    rows.save_to_disk(path.with_suffix(""))
    shutil.copy(path.with_suffix("") / "data-00000-of-00001.arrow", path)


FILES: dict[str, Callable[[Path, datasets.Dataset], object]] = {
    ".parquet": as_parquet,
    ".PARQUET": as_parquet,
    ".arrow": as_arrow,
    ".csv": lambda path, rows: rows.to_csv(path, index=False),
    ".tsv": lambda path, rows: rows.to_csv(path, index=False, sep="\t"),
    ".json": lambda path, rows: rows.to_json(path, lines=False),
    ".jsonl": lambda path, rows: rows.to_json(path),
}


@pytest.mark.parametrize("suffix", FILES)
def test_a_single_file(suffix: str) -> None:
    """Rows name their sound from where the file is; words such as `none` stay words."""
    base = Path("recipes")
    for name in ("a", "b", "c"):
        write_clip(base / "data" / f"{name}.wav")
    labels = ["none", "null", "yes"]
    rows = datasets.Dataset.from_dict({"audio": ["a.wav", "./b.wav", "c.wav"], "label": labels})
    FILES[suffix](base / "data" / f"my{suffix}", rows)
    found = source(f"data/my{suffix}").utterances(LABEL, base)
    assert [one.target for one in found] == labels
    assert [probe_seconds(one.content, DurationLimits()) for one in found] == [0.5] * 3
    assert [one.id for one in source(f"data/my{suffix}", split="train[1:]").utterances(
        LABEL, base
    )] == ["train[1:]:0", "train[1:]:1"]  # fmt: skip
    assert complaint(source(f"data/my{suffix}", split="test"), base) == (
        f"data/my{suffix}: no split 'test'; its splits are train"
    )


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".csv", "sets/" + "x" * 300, "a\0b", ""])
def test_names_that_no_file_has(name: str) -> None:
    (line,) = source(name).problems(Path("recipes"))
    assert line == complaint(source(name), Path("recipes"))
    assert line.startswith(f"{Path('recipes').absolute()}")


def test_files_that_are_not_there_or_not_of_rows() -> None:
    base = Path("recipes")
    assert source("my.parquet").problems(base) == [f"{base.absolute()}/my.parquet: no such file"]
    assert source("data/my.csv").problems(base) == [f"{base.absolute()}/data/my.csv: no such file"]
    write_clip(base / "clip.wav")
    assert complaint(source("clip.wav"), base) == (
        f"{base.absolute()}/clip.wav: no file of rows by its name; those end in .arrow, .csv, "
        ".json, .jsonl, .parquet, .tsv, .txt; or give a directory"
    )
    (base / "set.py").write_text("raise SystemExit('this code ran')")
    assert "no file of rows by its name" in complaint(source("set.py"), base)


@pytest.mark.timeout(60)
def test_what_is_no_file_is_not_read() -> None:
    base = Path("recipes")
    (base / "set" / "yes").mkdir(parents=True)
    os.mkfifo(base / "pipe.csv")
    (base / "zero.csv").symlink_to("/dev/zero")
    (base / "loop.csv").symlink_to("loop.csv")
    for name, fault in (
        ("pipe.csv", "is a pipe or a device, not a file"),
        ("zero.csv", "is a pipe or a device, not a file"),
        ("loop.csv", "cannot be read: too many levels of symbolic links"),
    ):
        assert complaint(source(name), base) == f"{base.absolute() / name}: {fault}"
    for name in ("pipe.csv", "zero.csv"):
        (base / name).rename(base / "set" / "yes" / name)
        assert complaint(source("set"), base) == (
            f"{base.absolute()}/set/yes/{name}: a pipe or a device, not a file: take it out"
        )
        (base / "set" / "yes" / name).unlink()


SPLITS = {"train": ["a", "b", "c", "d"], "test": ["e", "f"]}


@pytest.mark.parametrize("form", ["saved", "files"])
@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("test", "ef"),
        ("train[:50%]", "ab"),
        ("train[1:3]", "bc"),
        ("test+train[-1:]", "efd"),
        ("all", "abcdef"),
    ],
)
def test_splits_and_their_slices(form: str, split: str, expected: str) -> None:
    parts = {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in SPLITS.items()}
    if form == "saved":
        datasets.DatasetDict(parts).save_to_disk("set")
    else:
        for name, rows in parts.items():
            rows.to_json(Path("set") / f"{name}.jsonl")
    found = source("set", split=split, audio="text")
    assert "".join(targets(found, Path(), TEXT)) == expected
    for wrong in ("dev", "dev[:1]", "train,test"):
        assert complaint(source("set", split=wrong, audio="text"), Path(), TEXT) == (
            f"set: no split '{wrong}'; its splits are train, test"
        )


def test_a_split_that_was_saved_alone_is_that_split() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]}, split="test")
    rows.save_to_disk("set")
    assert complaint(source("set", audio="text"), Path(), TEXT) == (
        "set: no split 'train'; its splits are test"
    )
    assert targets(source("set", split="test", audio="text"), Path(), TEXT) == ["a"]


def test_settings_that_would_be_ignored() -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk("set")
    place = Path("set").absolute()
    assert source("set", revision="main").problems(Path()) == [
        f"{place}: revision: data on this machine have none: leave it out"
    ]
    assert source("set", name="clean").problems(Path()) == [
        f"{place}: name: there is one data set in it: leave it out"
    ]


def test_files_that_the_loader_passes_over_are_named() -> None:
    for number in range(8):
        word = "yes" if number % 2 else "no"
        written = write_clip(Path("written.wav"), 300 + 10 * number)
        name = f"{number}.Mp3" if number > 5 else f"{number}.wav"
        (Path("set/train") / word).mkdir(parents=True, exist_ok=True)
        written.rename(Path("set/train") / word / name)
    Path("set/train/yes/old.m4a").write_text("not read")
    Path("set/train/yes/.hidden.wav").write_text("not read")
    Path("set/README.md").write_text("About the set.")
    listing = source("set").listing(LABEL, Path())
    assert len(listing.utterances) == 6
    mixed = "its ending is neither in lower nor in upper case"
    assert listing.passed_over == (
        ("train/no/6.Mp3", mixed),
        ("train/yes/.hidden.wav", "hidden, by a name with a dot in front"),
        ("train/yes/7.Mp3", mixed),
        ("train/yes/old.m4a", "not a format that is read here: convert it to WAV or FLAC"),
    )


def test_clips_that_metadata_do_not_list_or_that_are_in_no_split_are_named() -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write_clip(Path("listed") / name)
    Path("listed/metadata.csv").write_text("file_name,text\na.wav,hello\nb.wav,good bye\n")
    listing = source("listed").listing(TEXT, Path())
    assert [one.target for one in listing.utterances] == ["hello", "good bye"]
    assert listing.passed_over == (("c.wav", "not taken up by datasets"),)
    # One name with "test" in it, and datasets takes the others for no split at all.
    for name in ("yes/a.wav", "yes/test-b.wav", "no/c.wav"):
        write_clip(Path("named") / name)
    listing = source("named", split="test", labelled=False).listing(LABEL, Path())
    assert [name for name, _ in listing.passed_over] == ["no/c.wav", "yes/a.wav"]
    Path("tables").mkdir()
    for name in ("a.csv", "b.csv", "c.CSV", "d.jsonl"):
        Path("tables", name).write_text("text\nhello\n")
    listing = source("tables", labelled=False, audio="text").listing(TEXT, Path())
    assert len(listing.utterances) == 2
    assert [name for name, _ in listing.passed_over] == ["c.CSV", "d.jsonl"]


def card(data_files: str) -> str:
    return f"---\nconfigs:\n- config_name: default\n  data_files: {data_files}\n---\n"


@pytest.mark.parametrize(
    "file", ["{here}/rows.csv", "../rows.csv", "../*.csv", "https://example.org/rows.csv",
             "zip://rows.csv::a.zip"]
)  # fmt: skip
@pytest.mark.parametrize("form", ["{}", "[{{split: train, path: {}}}]"])
def test_a_card_names_files_of_its_own_directory(file: str, form: str) -> None:
    Path("set").mkdir()
    Path("set/own.csv").write_text("audio,label\na.wav,own\n")
    file = file.format(here=Path().absolute())
    Path("set/README.md").write_text(card(form.format(f"'{file}'")))
    place = Path("set").absolute()
    assert complaint(source("set"), Path()) == (
        f"{place}: names {file!r}, which is not inside it: correct its README.md"
    )
    Path("set/README.md").write_text(card("own.csv"))
    assert targets(source("set"), Path()) == ["own"]


def test_a_card_that_is_no_text_of_a_common_size() -> None:
    Path("set").mkdir()
    Path("set/rows.csv").write_text("audio,label\na.wav,yes\n")
    Path("set/README.md").write_text("#" * 1_100_000)
    assert complaint(source("set"), Path()).endswith("README.md: cannot be read: larger than 1 MB")
    Path("set/README.md").write_text("---\n[\n---\n")
    assert complaint(source("set"), Path()).endswith("README.md: its settings are not valid YAML")


def test_names_that_datasets_takes_for_patterns() -> None:
    """`set[12]` would be read as `set1`."""
    for name in ("set1", "set[12]"):
        for clip in ("yes/a.wav", "no/b.wav"):
            write_clip(Path(name) / "train" / clip)
    assert complaint(source("set[12]"), Path()) == (
        f"{Path('set[12]').absolute()}: datasets takes the '[' in this path for a pattern: "
        "rename or move the data"
    )


def test_links_to_directories_are_named_not_followed() -> None:
    for clip in ("yes/a.wav", "no/b.wav"):
        write_clip(Path("set") / clip)
    Path("set/more").symlink_to(Path("strange").absolute())
    Path("set/again").symlink_to("..")
    listing = source("set").listing(LABEL, Path())
    assert sorted(str(one.target) for one in listing.utterances) == ["no", "yes"]
    why = "a link to a directory, which is not followed"
    assert listing.passed_over == (("again", why), ("more", why))


def test_sound_that_rows_name() -> None:
    base = Path("recipes")
    write_clip(base / "data" / "a.wav")
    write_clip(Path("outside.wav"))
    rows = ["a.wav", "../../outside.wav", str(Path("outside.wav").absolute()), "/dev/zero"]
    datasets.Dataset.from_dict({"audio": rows}).to_parquet(base / "data" / "my.parquet")
    told: list[float | str] = []
    for one in source("data/my.parquet", labelled=False).utterances(LABEL, base):
        try:
            told.append(probe_seconds(one.content, DurationLimits()))
        except ContentFault as fault:
            told.append(fault.reason)
    # On one's own machine an absolute path is as good as any.
    assert told == [0.5, "its path leads out of the data set", 0.5, "a device, not a file"]


def test_class_numbers_beyond_the_classes() -> None:
    features = datasets.Features(
        {"audio": datasets.Value("string"), "label": datasets.ClassLabel(names=["yes", "no"])}
    )
    rows = datasets.Dataset.from_dict({"audio": ["a.wav"], "label": [0]}, features=features)
    rows.save_to_disk("set")
    wrong = datasets.Dataset.from_dict({"audio": ["a.wav"], "label": [7]})
    wrong.save_to_disk("wrong")
    shutil.copy("wrong/data-00000-of-00001.arrow", "set/data-00000-of-00001.arrow")
    assert complaint(source("set"), Path()).startswith("set (train): ")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", b'audio,label\nx.wav,yes,too,many\n\n"\n'),
        ("rows.csv", "audio,label\nx.wav,größe\n".encode("latin-1")),
        ("rows.json", b"{" * 10_000),
        ("rows.jsonl", b'{"audio": ' + b"7" * 5000 + b"}\n"),
        ("rows.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("rows.arrow", bytes(200)),
        ("rows.csv", b""),
    ],
)
def test_damaged_files_are_plain_errors(name: str, content: bytes) -> None:
    Path("set").mkdir()
    for path in (name, f"set/{name}"):
        Path(path).write_bytes(content)
    for path in (name, "set"):
        told = complaint(source(path), Path())
        assert told.startswith(f"{path} (train): ")
        assert "\n" not in told
        assert len(told) < 400
