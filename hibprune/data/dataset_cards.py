"""What a local data set's own card says that its files are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from hibprune.errors import UserError
from hibprune.execution.files import MAX_RECIPE_BYTES, read_fault, read_text_bounded

CARD, CARD_SETTINGS = "README.md", ".huggingface.yaml"
"""Where `datasets` looks for them: at the top of the first, in all of the second."""


def files_on_card(top: Path) -> Iterator[str]:
    """Every file, directory or pattern that a data set's card names.

    `datasets` opens them as they are: absolute paths and addresses on the network, too. Raises
    UserError when the card is not one to be read.
    """
    from huggingface_hub import metadata_load

    for name, read in ((CARD, metadata_load), (CARD_SETTINGS, _settings)):
        if not (top / name).exists():
            continue
        try:
            read_text_bounded(top / name, MAX_RECIPE_BYTES)
            content = read(top / name)
        except OSError as error:
            raise UserError(f"{top / name}: cannot be read: {read_fault(error)}") from error
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{top / name}: its settings are not valid YAML") from error
        configurations = content.get("configs") if isinstance(content, dict) else None
        for one in configurations if isinstance(configurations, list) else ():
            if isinstance(one, dict):
                yield from _strings([one.get("data_files"), one.get("data_dir")])


def _settings(path: Path) -> Any:
    return yaml.safe_load(read_text_bounded(path, MAX_RECIPE_BYTES))


def _strings(value: Any) -> Iterator[str]:
    """All text in lists and mappings; what YAML repeats by reference is looked at once."""
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list | dict) and id(one) not in seen:
            seen.add(id(one))
            waiting.extend(one.values() if isinstance(one, dict) else one)
