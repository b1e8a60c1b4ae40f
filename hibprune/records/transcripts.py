"""By which rules transcripts are compared with what a model says."""

from __future__ import annotations

from typing import Literal

from hibprune.records.base import Record

Counted = Literal["word", "character"]
Normaliser = Literal["unicode", "whisper-english", "none"]


class TranscriptRules(Record):
    """What is counted, and what both sides went through before.

    `language` is its code, None where it is not known; `annotations` tells whether what stands in
    brackets counts as said.
    """

    counted: Counted
    normaliser: Normaliser
    language: str | None
    annotations: bool


class TranscriptFaults(Record):
    """What share of the transcripts went wrong altogether, as those of a broken decoder do.

    `empty` are those that say nothing, `looping` those that say one phrase over and over to their
    end.
    """

    empty: float
    looping: float
