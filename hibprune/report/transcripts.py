"""By which rules transcripts were compared, and how many went wrong altogether."""

from __future__ import annotations

from collections.abc import Sequence

from hibprune.records.transcripts import TranscriptRules
from hibprune.records.variants import Variant
from hibprune.report.markdown import table
from hibprune.report.numbers import percent


def transcripts_sentence(rules: TranscriptRules | None) -> str:
    """What was counted and what both sides went through before; empty where no text was compared.

    E.g. `Transcripts were compared word by word, after … .`
    """
    if rules is None:
        return ""
    counted = f"Transcripts were compared {rules.counted} by {rules.counted}"
    spoken = "language not given" if rules.language is None else f"language {rules.language}"
    return f"{counted} ({spoken}), {_normalised(rules)}."


def faults_table(variants: Sequence[Variant]) -> str:
    """What share of each model's transcripts is empty or loops; empty without a decoder."""
    rows = [
        (one.name, percent(one.faults.empty, 1), percent(one.faults.looping, 1))
        for one in variants
        if one.faults is not None
    ]
    if not rows:
        return ""
    return (
        table("lrr", ["variant", "transcripts empty", "transcripts looping"], rows)
        + "\n\n*Looping: ends in a phrase that stands there at least four times in a row, which "
        "the truth does not.*"
    )


def _normalised(rules: TranscriptRules) -> str:
    if rules.normaliser == "none":
        return "as they are, with capitals and punctuation"
    if rules.normaliser == "whisper-english":
        return (
            "after Whisper's English normaliser, which unifies capitals, punctuation, numbers, "
            "contractions and spellings and drops what stands in brackets"
        )
    brackets = "" if rules.annotations else "; what stands in brackets is left out"
    return (
        "without regard to capitals, punctuation and Unicode's compatibility forms; accents, vowel "
        f"signs and other marks count{brackets}"
    )
