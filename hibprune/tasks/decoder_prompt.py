"""What a decoder is told before it speaks: language, task, no timestamps, as `generate` tells it.

The numbers come from the checkpoint's generation configuration, from which transformers takes them
too (`WhisperGenerationMixin._retrieve_init_tokens`); a tokenizer only guesses them.
"""

from __future__ import annotations

from typing import Any

from hibprune.errors import did_you_mean
from hibprune.tasks.languages import language_code

TRANSCRIBE = "transcribe"


def language_fault(language: str | None, generation: Any) -> str | None:
    """Why a checkpoint cannot be told this language (or none), or None when it can."""
    if not getattr(generation, "is_multilingual", False):
        return None if language is None else "it is not multilingual: leave task.language out"
    known = _languages(generation)
    if TRANSCRIBE not in (getattr(generation, "task_to_id", None) or {}) or not known:
        return (
            "it is multilingual, but its generation_config.json lacks lang_to_id or task_to_id: "
            "take that file from the checkpoint it was made of"
        )
    if language is None:
        return "it is multilingual: set task.language, e.g. en"
    if language_code(language) not in known:
        codes = list(known)
        return (
            f"it has no language '{language}'{did_you_mean(language.lower(), codes)}: "
            f"set task.language to one of {', '.join(codes)}"
        )
    return None


def steering_tokens(language: str | None, generation: Any) -> tuple[int, ...]:
    """The tokens that `generate` feeds after the start token, before the decoder may choose."""
    if language is not None:
        spoken = _languages(generation)[language_code(language)]
        tokens = [spoken, generation.task_to_id[TRANSCRIBE]]
    else:
        forced = getattr(generation, "forced_decoder_ids", None) or []
        tokens = [token for _, token in forced if token is not None]
    silent = getattr(generation, "no_timestamps_token_id", None)
    if silent is not None and tokens[-1:] != [silent]:
        tokens.append(silent)
    return tuple(tokens)


def _languages(generation: Any) -> dict[str, int]:
    """Tokens by language code; `<|en|>` is how the configuration writes en."""
    tokens: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    return {token.strip("<|>"): number for token, number in tokens.items()}
