"""Rows of a JSONL or CSV file, told apart by line, and the file's faults in plain words."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hibprune.errors import UserError, shortened
from hibprune.execution.files import read_bounded, read_fault

Row = dict[str, Any]

MAX_LINE = 1_000_000
"""Characters; a longer one is no row of names, labels and texts."""


def rows_of(path: Path, columns: list[str]) -> Iterator[tuple[int, Row]]:
    """Line number and row of a `.jsonl` or `.csv` file, which must have `columns` if CSV.

    Raises UserError naming file and line.
    """
    readers = {".jsonl": _json_rows, ".csv": _csv_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not a manifest; its name must end in .jsonl or .csv")
    try:
        content = read_bounded(path)
        # utf-8-sig also reads files without the byte order mark that Windows programs put first.
        with io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig", newline="") as stream:
            lines = _Lines(path, stream)
            for row in reader(lines, columns):
                yield lines.number, row
    except FileNotFoundError:
        raise UserError(f"{path}: no such manifest") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {read_fault(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; save the manifest as UTF-8") from error


class _Lines:
    """The lines of a file, none longer than MAX_LINE; `number` is that of the last one read."""

    def __init__(self, path: Path, stream: io.TextIOWrapper) -> None:
        self.path, self.number = path, 0
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline(MAX_LINE + 1):
            self.number += 1
            if len(line) > MAX_LINE:
                raise UserError(f"{self.place}: a line of more than {MAX_LINE:,} characters")
            yield line

    @property
    def place(self) -> str:
        return f"{self.path}:{self.number}"


def _json_rows(lines: _Lines, _: list[str]) -> Iterator[Row]:
    for text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text, object_pairs_hook=_without_repetition)
        except _RepeatedKeyError as error:
            raise UserError(f"{lines.place}: '{shortened(error.key)}' is given twice") from error
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{lines.place}: not JSON; write one object a line") from error
        except ValueError as error:
            # Python reads no whole number of more than 4,300 digits.
            raise UserError(f"{lines.place}: holds a number of thousands of digits") from error
        if not isinstance(row, dict):
            raise UserError(f"{lines.place}: not a JSON object; write one object a line")
        yield row


class _RepeatedKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_repetition(pairs: list[tuple[str, Any]]) -> Row:
    """The object of some pairs, of which Python would else keep the last without a word."""
    row: Row = {}
    for key, value in pairs:
        if key in row:
            raise _RepeatedKeyError(key)
        row[key] = value
    return row


def _csv_rows(lines: _Lines, columns: list[str]) -> Iterator[Row]:
    rows = csv.DictReader(lines, strict=True)
    try:
        present = [name for name in rows.fieldnames or [] if name]
        for column in columns:
            if column not in present:
                raise UserError(
                    f"{lines.path}:1: no column '{column}'; "
                    f"its columns are {shortened(', '.join(present))}"
                )
        repeated = [name for name, count in Counter(present).items() if count > 1]
        if repeated:
            raise UserError(f"{lines.path}:1: column '{shortened(repeated[0])}' is there twice")
        for row in rows:
            # What is beyond the last column has no name.
            if None in row:
                raise UserError(
                    f"{lines.place}: has more fields than the header has columns; "
                    "put texts with commas in double quotes"
                )
            yield row
    except csv.Error as error:
        raise UserError(f"{lines.place}: not CSV: {error}") from error
