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
