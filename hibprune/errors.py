"""Faults that are the user's to mend: one plain line, no traceback."""

import difflib
import re
from collections.abc import Sequence
from importlib.util import find_spec

INSTALLED_AS = {"PIL": "Pillow", "yaml": "PyYAML", "sklearn": "scikit-learn"}
"""Names of packages where they differ from what is imported."""

MAX_QUOTED = 80
"""Characters of a stranger's text that a line repeats."""


class UserError(Exception):
    """A bad recipe, data set, model or machine: the place, the fault and the remedy in one line.

    The command line prints it and exits with code 2.
    """


def shortened(text: str, limit: int = MAX_QUOTED) -> str:
    """Text of at most `limit` characters; one that is longer ends in an ellipsis."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def did_you_mean(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """A hint at the known word nearest to a mistaken one; empty where none is near.

    `cutoff` is the likeness, 0 to 1, from which a word counts as near.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f" (did you mean '{near[0]}'?)" if near else ""


def missing_package(error: BaseException) -> str | None:
    """The package to install for an import to work, or None where another fault is told of.

    transformers has words of its own for what it lacks.
    """
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        imported = error.name.partition(".")[0]
        return None if imported == "hibprune" else INSTALLED_AS.get(imported, imported)
    told = re.search(r"requires the (\w+) library|have (sentencepiece)", str(error))
    if told is None:
        return None
    package = (told[1] or told[2]).lower()
    return package if find_spec(package) is None else None


def first_line(error: Exception) -> str:
    """What another library says went wrong, on one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
