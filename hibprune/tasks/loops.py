"""Transcripts that went wrong altogether: nothing said, or one phrase over and over to the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hibprune.records.transcripts import Counted, TranscriptFaults

TIMES = 4
"""A phrase said so often in a row, up to the end, is a loop; the last time may be cut short."""
CHARACTER_TIMES = 10
"""Of characters within words, where texts have words: "hahaha" is none."""


def transcript_faults(
    predictions: Sequence[str],
    references: Sequence[str],
    normalise: Callable[[str], str],
    counted: Counted,
) -> TranscriptFaults:
    """Shares of empty and of looping transcripts, where the truth is neither."""
    empty = looping = 0
    for prediction, reference in zip(predictions, references, strict=True):
        said, true = normalise(prediction).strip(), normalise(reference).strip()
        looping += loops(prediction, said, counted) and not loops(reference, true, counted)
        # What consists of signs alone, over and over, loops.
        empty += bool(true) and not said and not loops(prediction, said, counted)
    return TranscriptFaults(empty=empty / len(predictions), looping=looping / len(predictions))


def loops(text: str, normalised: str, counted: Counted) -> bool:
    """Whether a text ends in a loop, of its words as compared, or of characters as they stand."""
    characters = [one for one in text if not one.isspace()]
    if counted == "character":
        return repeats_at_end(characters, TIMES)
    return repeats_at_end(normalised.split(), TIMES) or repeats_at_end(characters, CHARACTER_TIMES)


def repeats_at_end(items: Sequence[str], times: int) -> bool:
    """Whether a sequence ends in a part of it that stands there at least `times` times in a row.

    The end may be cut anywhere, also within an item.
    """
    for period in range(1, len(items) // times + 1):
        place = len(items) - 1 - period
        if not items[place].startswith(items[-1]):
            continue
        place -= 1
        while place >= 0 and items[place] == items[place + period]:
            place -= 1
        if len(items) - 1 - place >= times * period:
            return True
    return False
