"""Utterances listed in a JSONL or CSV file: sound files by name, or texts in the file itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from hibprune.data.labels import LabelledSource
from hibprune.data.paths import directory_fault, file_fault, inside, legible, located
from hibprune.data.rows import Row, rows_of
from hibprune.data.utterances import (
    AudioFile,
    Content,
    Listing,
    TargetFields,
    Text,
    Utterance,
    columns_wanted,
    target_from,
)
from hibprune.errors import UserError, shortened
from hibprune.records.medium import SOUND, TEXT, Medium

NO_MANIFEST = "no such manifest"

Entry = tuple[str, str, Content, Row]
"""Place for errors, id, content, and the row it stands in."""


class Manifest(LabelledSource):
    """A `.jsonl` or `.csv` file with a clip or a text a line.

    `root` is the directory that audio paths start from (default: the manifest's). `audio`,
    `label`, `text` and `slots` name the columns; `slots` maps a slot to its column. For tasks on
    text, `text` is what goes in. `label_names` gives the model's name for labels: a mapping, or a
    list by number. Labels that are whole numbers and no names of the model's count its classes.
    """

    media: ClassVar[tuple[Medium, ...]] = (SOUND, TEXT)
    to_reach_outside: ClassVar[str] = "set 'root' to a directory above it"
    """What makes an audio path do that leads out of where paths start."""

    kind: Literal["manifest"]
    path: str
    root: str | None = None
    audio: str = "audio"
    label: str = "label"
    text: str = "text"
    slots: dict[str, str] = Field(default_factory=dict)
    labelled: bool = True

    def listing(self, fields: TargetFields, base: Path) -> Listing:
        """The clips or texts in the manifest's order; `base` is where relative paths start.

        Raises UserError naming file and line.
        """
        path = located(self.path, base)
        columns = columns_wanted(fields, self.label, self.text, self.slots) if self.labelled else {}
        entering = self.text if fields.medium is TEXT else self.audio
        listed = self._texts if fields.medium is TEXT else self._clips
        found: list[Utterance] = []
        for place, name, content, row in listed(path, base, [entering, *columns.values()]):
            values = {
                field: _text(row, column, place, is_label=field != "text")
                for field, column in columns.items()
            }
            target = target_from(fields, values) if self.labelled else None
            found.append(Utterance(name, content, target))
        if not found:
            raise UserError(f"{path}: lists no {fields.medium.many}")
        return self.renamed(Listing(found), fields)

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line for each path that does not exist."""
        path = located(self.path, base)
        fault = file_fault(path, NO_MANIFEST)
        if fault is not None:
            return [f"{path}: {fault}"]
        root = self._audio_root(path, base)
        fault = directory_fault(root)
        return [] if fault is None else [f"{root}: {fault} (root of {path.name})"]

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return file_fault(located(self.path, base)) is None

    def _clips(self, path: Path, base: Path, columns: list[str]) -> Iterator[Entry]:
        root = self._audio_root(path, base)
        lines: dict[str, int] = {}
        for line, row in rows_of(path, columns):
            place = f"{path}:{line}"
            name = self._inside(root, _text(row, self.audio, place, is_path=True), place)
            if name in lines:
                raise UserError(
                    f"{place}: {shortened(legible(name))} is listed already in line {lines[name]}"
                )
            lines[name] = line
            yield place, legible(name), AudioFile(root / name), row

    def _texts(self, path: Path, base: Path, columns: list[str]) -> Iterator[Entry]:
        """Texts are named by their line; the same one may well stand in two."""
        for line, row in rows_of(path, columns):
            place = f"{path}:{line}"
            text = Text(_text(row, self.text, place, is_input=True))
            yield place, f"{legible(path.name)}:{line}", text, row

    def _audio_root(self, path: Path, base: Path) -> Path:
        return path.parent if self.root is None else located(self.root, base)

    def _inside(self, root: Path, name: str, place: str) -> str:
        """`name` relative to `root`. Raises UserError when it leaves `root`."""
        found = inside(root, name)
        if found is None:
            raise UserError(
                f"{place}: {shortened(repr(name))} is no path inside {root}; "
                f"{self.to_reach_outside}"
            )
        return found.as_posix()


def _text(
    row: Row,
    column: str,
    place: str,
    *,
    is_path: bool = False,
    is_input: bool = False,
    is_label: bool = False,
) -> str:
    """What a column holds, without white space around it; a label may be a whole number.

    Raises UserError. Halves of characters, which JSON can hold, make the names of files that are
    not UTF-8; as an input of the model they are a fault of that input alone, told when it is read.
    """
    value = row.get(column)
    if value is None:
        present = ", ".join(str(name) for name, held in row.items() if name and held is not None)
        raise UserError(f"{place}: no '{column}'; the line has {shortened(present) or 'nothing'}")
    if is_label and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        written = shortened(json.dumps(value))
        whole = is_label and isinstance(value, float) and value.is_integer()
        remedy = f"{int(value):d}" if whole else "text"
        raise UserError(f"{place}: '{column}' is {written}; write it as {remedy}")
    if not value.strip():
        raise UserError(f"{place}: '{column}' is empty")
    errors = "surrogateescape" if is_path else "strict"
    try:
        value.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        if not is_input:
            raise UserError(f"{place}: '{column}' holds half a character") from error
    return value.strip()
