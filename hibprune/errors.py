"""Faults that are the user's to mend: one plain line, no traceback."""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec

INSTALLED_AS = {"PIL": "Pillow", "yaml": "PyYAML", "sklearn": "scikit-learn"}
"""Names of packages where they differ from what is imported."""

MAX_QUOTED = 80
"""Characters of a stranger's text that a line repeats."""
MAX_WORD = 100
"""Characters of a word that others are compared with."""

STEERING = ("Cc", "Cs", "Zl", "Zp")
"""Categories of what moves a cursor, ends a line, or is half of a character."""
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that let a line read in another order than it has."""

TEMPORARY = re.compile(r"/?(?:[^\s:/]+/)*\.scratch\.\d+\.\d+\.partial/")
"""Where a file lies while a run is under way, as `execution.files` calls such places."""


class UserError(Exception):
    """A bad recipe, data set, model or machine: the place, the fault and the remedy in one line.

    The command line prints it and exits with code 2.
    """


class OutputError(UserError):
    """A full disk, a missing permission: it says nothing of what was to be written."""


def printable(text: str) -> str:
    """Text on one line, with nothing in it that steers a terminal: `�` stands for what does.

    Labels, file names and transcripts come from strangers. Marks and joiners of scripts stay.
    """
    return "".join(map(_printable, text))


def _printable(letter: str) -> str:
    if letter in "\t\n\v\f\r":
        return " "
    steers = unicodedata.category(letter) in STEERING or letter in DIRECTIONS
    return "�" if steers else letter


def shortened(text: str, limit: int = MAX_QUOTED) -> str:
    """Text of at most `limit` characters, on one line; one that is longer ends in an ellipsis."""
    short = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return " ".join(short.splitlines())


def without_temporary(text: str) -> str:
    """Text with files in temporary directories called by their places therein.

    Those are gone once it is read, and have another name in each run.
    """
    return TEMPORARY.sub("", text)


def did_you_mean(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """A hint at the known word nearest to a mistaken one; empty where none is near.

    `cutoff` is the likeness, 0 to 1, from which a word counts as near.
    """
    if len(word) > MAX_WORD:
        return ""
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f" (did you mean '{shortened(near[0])}'?)" if near else ""


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


def import_fault(error: BaseException) -> str | None:
    """The line for a package that is not there or broken; None for any other error."""
    package = missing_package(error)
    if package is not None:
        return f"the package '{package}' is not installed: pip install {package}"
    # transformers tells of one by a RuntimeError that the ImportError has caused.
    cause = error.__cause__ if isinstance(error, RuntimeError) else error
    if not isinstance(cause, ImportError) or (cause.name or "").startswith("hibprune"):
        return None
    named = f"the package '{cause.name.partition('.')[0]}'" if cause.name else "a package"
    reason = shortened(str(cause).strip().partition("\n")[0] or "no reason is told", 200)
    return f"{named} cannot be imported: {reason}: install it again"
