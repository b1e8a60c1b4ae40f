"""Markdown that text from strangers (names, reasons, recipes) cannot break out of."""

from __future__ import annotations

import re
from collections.abc import Sequence


def plain(text: object) -> str:
    """Text as one line that renders as itself, also inside a table cell.

    A pipe becomes an entity, since a table row may be cut at a backslash-escaped one.
    """
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]~#!$])", r"\\\1", line)
    # An underscore between letters is no emphasis; escaping it would only spoil the source.
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
    # What begins a line may be a list, a rule or a heading.
    line = re.sub(r"^([-+=])(?=[-+=\s]|$)", r"\\\1", line)
    line = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)
    return line.replace("|", "&#124;")


def table(alignment: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; `alignment` has an `l` or `r` per column, for text and for figures."""
    rules = [{"l": ":--", "r": "--:"}[side] for side in alignment]
    lines = [header, rules, *[[plain(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(text: str, language: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
