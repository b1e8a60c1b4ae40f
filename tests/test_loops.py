"""Transcripts that say nothing, or one phrase over and over to their end."""

from __future__ import annotations

import pytest

from hibprune.records.transcripts import Counted
from hibprune.tasks.loops import loops, transcript_faults


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("go", False),
        ("no no no", False),
        ("no no no no", True),
        ("and then no no no no no", True),
        ("no no no no yes", False),  # over before the end
        ("no no no no n", True),
        ("the cat sat the cat sat the cat sat the cat sat", True),
        ("well the cat sat the cat sat the cat sat the cat sat the ca", True),  # cut
        ("the cat sat the cat sat the cat sat", False),
        ("a b a b a b a b a b", True),
        ("a b a c a b a c", False),
        ("hahaha", False),
        ("ha" * 12, True),
        ("so " + "!" * 30, True),
        ("one two three four five six seven eight", False),
    ],
)
def test_a_loop_is_a_phrase_four_times_in_a_row_at_the_end(text: str, expected: bool) -> None:
    assert loops(text, text.replace("!", ""), "word") is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("はははは", True),
        ("ありがとうございます", False),
        ("ありがとう" * 4, True),
        ("はい", False),
    ],
)
def test_where_characters_are_counted_they_are_what_repeats(text: str, expected: bool) -> None:
    assert loops(text, text, "character") is expected


@pytest.mark.parametrize(
    ("said", "true", "empty", "looping"),
    [
        (["a b", "", "c", " . "], ["a b", "a", "b", "c"], 0.5, 0.0),
        (["no no no no", "yes"], ["no no no no", "yes"], 0.0, 0.0),  # so it is
        (["no no no no", "yes"], ["no", "yes"], 0.0, 0.5),
        (["", ""], ["", "a"], 0.5, 0.0),  # nothing was said
        (["." * 50], ["a"], 0.0, 1.0),
    ],
)
def test_shares_are_of_all_where_the_truth_is_neither(
    said: list[str], true: list[str], empty: float, looping: float
) -> None:
    word: Counted = "word"
    found = transcript_faults(said, true, lambda text: text.replace(".", ""), word)
    assert (found.empty, found.looping) == (empty, looping)
