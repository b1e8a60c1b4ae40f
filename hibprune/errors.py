"""Faults that are the user's to mend: one plain line, no traceback."""

import difflib
from collections.abc import Sequence


class UserError(Exception):
    """A bad recipe, data set, model or machine: the place, the fault and the remedy in one line.

    The command line prints it and exits with code 2.
    """


def did_you_mean(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """A hint at the known word nearest to a mistaken one; empty where none is near.

    `cutoff` is the likeness, 0 to 1, from which a word counts as near.
    """
    near = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f" (did you mean '{near[0]}'?)" if near else ""


def first_line(error: Exception) -> str:
    """What another library says went wrong, on one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
