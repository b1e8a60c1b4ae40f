"""The licence that a checkpoint's own card or configuration states."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from hibprune.errors import UserError
from hibprune.execution.files import read_bounded
from hibprune.models.source import read_json, real_file
from hibprune.models.staging import MAX_SETTINGS_BYTES
from hibprune.records.licence import Licence

CARD, CONFIGURATION = "README.md", "config.json"
MAX_CARD_BYTES, MAX_FRONT_MATTER = 2**20, 2**16
FRONT_MATTER = re.compile(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", re.DOTALL)
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
"""What the Hub's names of licences look like."""
MAX_WORDS = 300
"""Characters of a licence's name or address."""


def stated_licence(directory: Path, source: str) -> Licence | None:
    """What the card of a checkpoint says of its licence, or else its configuration; None: neither.

    A card that cannot be read states nothing: it is not what the model needs.
    """
    for name, read in ((CARD, _front_matter), (CONFIGURATION, _configuration)):
        if not os.path.lexists(directory / name):
            continue
        try:
            found = _licence(read(real_file(directory, name, source)), name)
        except (UserError, OSError):
            continue
        if found is not None:
            return found
    return None


def _front_matter(path: Path) -> Mapping[str, object]:
    text = read_bounded(path, MAX_CARD_BYTES).decode("utf-8", "replace").replace("\r\n", "\n")
    block = FRONT_MATTER.match(text.removeprefix("\ufeff"))
    if block is None or len(block[1]) > MAX_FRONT_MATTER:
        return {}
    try:
        content = yaml.safe_load(block[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _configuration(path: Path) -> Mapping[str, object]:
    return read_json(path, path.name, MAX_SETTINGS_BYTES)


def _licence(said: Mapping[str, object], place: str) -> Licence | None:
    stated = said.get("license")
    # The Hub also takes a list of one.
    first = stated[0] if isinstance(stated, list) and len(stated) == 1 else stated
    if not isinstance(first, str) or not IDENTIFIER.fullmatch(first.strip().lower()):
        return None
    return Licence(
        id=first.strip().lower(),
        name=_words(said.get("license_name")),
        link=_words(said.get("license_link")),
        taken_from=place,
    )


def _words(said: object) -> str | None:
    return said if isinstance(said, str) and 0 < len(said) <= MAX_WORDS else None
