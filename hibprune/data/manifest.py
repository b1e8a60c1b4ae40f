"""Utterances listed in a JSONL or CSV file: sound files by name, or texts in the file itself."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from hibprune.data.utterances import (
    AudioFile,
    Content,
    TargetFields,
    Text,
    Utterance,
    columns_wanted,
    located,
    target_from,
)
from hibprune.errors import UserError
from hibprune.records.base import Record
from hibprune.records.medium import SOUND, TEXT, Medium

Row = dict[str, Any]
Entry = tuple[str, str, Content, Row]
"""Place for errors, id, content, and the row it stands in."""


class Manifest(Record):
    """A `.jsonl` or `.csv` file with a clip or a text a line.

    `root` is the directory that audio paths start from (default: the manifest's). `audio`,
    `label`, `text` and `slots` name the columns; `slots` maps a slot to its column. For tasks on
    text, `text` is what goes in.
    """

    media: ClassVar[tuple[Medium, ...]] = (SOUND, TEXT)

    kind: Literal["manifest"]
    path: str
    root: str | None = None
    audio: str = "audio"
    label: str = "label"
    text: str = "text"
    slots: dict[str, str] = Field(default_factory=dict)
    labelled: bool = True

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The clips or texts in the manifest's order; `base` is where relative paths start.

        Raises UserError naming file and line.
        """
        path = located(self.path, base)
        columns = columns_wanted(fields, self.label, self.text, self.slots) if self.labelled else {}
        entering = self.text if fields.medium is TEXT else self.audio
        listed = self._texts if fields.medium is TEXT else self._clips
        found: list[Utterance] = []
        for place, name, content, row in listed(path, base, [entering, *columns.values()]):
            values = {field: _text(row, column, place) for field, column in columns.items()}
            target = target_from(fields, values) if self.labelled else None
            found.append(Utterance(name, content, target))
        if not found:
            raise UserError(f"{path}: lists no {fields.medium.many}")
        return found

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line for each path that does not exist."""
        path = located(self.path, base)
        if not path.is_file():
            return [f"{path}: no such manifest"]
        root = self._audio_root(path, base)
        return [] if root.is_dir() else [f"{root}: no such directory (root of {path.name})"]

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return located(self.path, base).is_file()

    def _clips(self, path: Path, base: Path, columns: list[str]) -> Iterator[Entry]:
        root = self._audio_root(path, base)
        lines: dict[str, int] = {}
        for line, row in _rows(path, columns):
            place = f"{path}:{line}"
            name = _inside(root, _text(row, self.audio, place), place)
            if name in lines:
                raise UserError(f"{place}: {name} is listed already in line {lines[name]}")
            lines[name] = line
            yield place, name, AudioFile(root / name), row

    def _texts(self, path: Path, base: Path, columns: list[str]) -> Iterator[Entry]:
        """Texts are named by their line; the same one may well stand in two."""
        for line, row in _rows(path, columns):
            place = f"{path}:{line}"
            yield place, f"{path.name}:{line}", Text(_text(row, self.text, place)), row

    def _audio_root(self, path: Path, base: Path) -> Path:
        return path.parent if self.root is None else located(self.root, base)


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, Row]]:
    """Line number and row. Raises UserError when the file or a column is missing."""
    readers = {".jsonl": _json_rows(path), ".csv": _csv_rows(path, columns)}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: not a manifest; its name must end in .jsonl or .csv")
    try:
        yield from readers[path.suffix.lower()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the manifest as UTF-8") from error


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    # utf-8-sig also reads files without the byte order mark that Windows programs put first.
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                raise UserError(f"{path}:{line}: not JSON; write one object a line") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{line}: not a JSON object; write one object a line")
            yield line, row


def _csv_rows(path: Path, columns: list[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = csv.DictReader(stream, strict=True)
        try:
            present = [name for name in rows.fieldnames or [] if name]
            for column in columns:
                if column not in present:
                    raise UserError(
                        f"{path}:1: no column '{column}'; its columns are {', '.join(present)}"
                    )
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise UserError(f"{path}:{rows.line_num}: not CSV: {error}") from error


def _text(row: Row, column: str, place: str) -> str:
    value = row.get(column)
    if value is None:
        present = ", ".join(str(name) for name, held in row.items() if name and held is not None)
        raise UserError(f"{place}: no '{column}'; the line has {present or 'nothing'}")
    if not isinstance(value, str):
        raise UserError(f"{place}: '{column}' is {json.dumps(value)}; write it as text")
    if not value.strip():
        raise UserError(f"{place}: '{column}' is empty")
    return value.strip()


def _inside(root: Path, name: str, place: str) -> str:
    """`name` relative to `root`. Raises UserError when it leaves `root`.

    Judged by the path as written, not by where links lead: manifests come from strangers, links
    (as in the Hub's cache) are made on this machine.
    """
    top = os.path.normpath(root.absolute())
    target = Path(os.path.normpath(Path(top, name)))
    if "\0" in name or not target.is_relative_to(top):
        raise UserError(
            f"{place}: {name!r} is no path inside {root}; set 'root' to a directory above it"
        )
    return target.relative_to(top).as_posix()
