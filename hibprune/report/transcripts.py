"""By which rules transcripts were compared, in a sentence."""

from __future__ import annotations

from hibprune.records.transcripts import TranscriptRules


def transcripts_sentence(rules: TranscriptRules | None) -> str:
    """What was counted and what both sides went through before; empty where no text was compared.

    E.g. `Transcripts were compared word by word, after … .`
    """
    if rules is None:
        return ""
    counted = f"Transcripts were compared {rules.counted} by {rules.counted}"
    spoken = "language not given" if rules.language is None else f"language {rules.language}"
    return f"{counted} ({spoken}), {_normalised(rules)}."


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
