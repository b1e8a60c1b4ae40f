"""Tokenizer, configuration and output layer of a model that writes: do they know the same tokens?

What they do not agree on ends in wrong transcripts without a word, or in numbers beyond the logits,
at which native code reads memory that is not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

from hibprune.tasks.vocabulary import Vocabulary

ONE_CHECKPOINT = "take tokenizer, configuration and weights from one checkpoint"

CONFIG, GENERATION = "config.json", "generation_config.json"

SINGLE_TOKENS = (
    "decoder_start_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "no_timestamps_token_id",
    "prev_sot_token_id",
)
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
TOKEN_TABLES = ("lang_to_id", "task_to_id")
"""Settings of generation that hold numbers of tokens."""


USUALLY_SPECIAL = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<blank>",
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BLANK]",
)  # fmt: skip
"""Special also where a tokenizer's settings forget to say so."""


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Tokens that are no text, by number: for padding, unknown letters, beginnings and ends."""
    tokens = tokenizer.get_vocab()
    found = {tokens[token]: token for token in USUALLY_SPECIAL if token in tokens}
    found |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    added = tokenizer.added_tokens_decoder.items()
    found |= {number: str(token) for number, token in added if token.special}
    # Some list it among them.
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    return {number: token for number, token in found.items() if token != delimiter}


def delimiter_fault(tokenizer: Any, tokens: Mapping[str, int]) -> str | None:
    """Why a tokenizer of letters cannot write the space between words, or None when it can."""
    delimiter = getattr(tokenizer, "word_delimiter_token", None)
    if delimiter is None or delimiter in tokens:
        return None
    return (
        f"the tokenizer has no token '{delimiter}' for the space between words "
        "(tokenizer_config.json: word_delimiter_token)"
    )


def blank_fault(vocabulary: Vocabulary) -> str | None:
    """Why CTC's blank is not the same token to tokenizer, configuration and weights, or None."""
    tokenizer, configuration = vocabulary.tokenizer, vocabulary.configuration
    blank = tokenizer.pad_token_id
    if blank is None:
        return (
            "its tokenizer has no pad token, which is CTC's blank: name one in "
            "tokenizer_config.json (pad_token)"
        )
    if configuration is not None and not _is(configuration.pad_token_id, blank):
        return (
            f"CTC's blank is {_shown(configuration.pad_token_id)} by config.json (pad_token_id) "
            f"and {blank}, '{tokenizer.pad_token}', by its tokenizer: {ONE_CHECKPOINT}"
        )
    if vocabulary.outputs is not None and not 0 <= blank < vocabulary.outputs:
        return (
            f"CTC's blank is {blank} (config.json: pad_token_id), but the model has "
            f"{vocabulary.outputs} outputs, 0 to {vocabulary.outputs - 1}: {ONE_CHECKPOINT}"
        )
    if getattr(tokenizer, "word_delimiter_token", None) == tokenizer.pad_token:
        return (
            f"'{tokenizer.pad_token}' is both CTC's blank and the space between words by its "
            "tokenizer_config.json (pad_token, word_delimiter_token): correct one of them"
        )
    return None


def letters_fault(vocabulary: Vocabulary) -> str | None:
    """Why a tokenizer's letters are not the outputs of a CTC model, or None when they are.

    Special tokens may have no output: they are not in transcripts.
    """
    tokenizer, outputs = vocabulary.tokenizer, vocabulary.outputs
    tokens: dict[str, Any] = tokenizer.get_vocab()
    holders: dict[int, str] = {}
    for token, number in tokens.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            return (
                f"its tokenizer's number for '{_short(token)}' is {_shown(number)}: "
                "correct its vocab.json"
            )
        if number in holders:
            return (
                f"its tokenizer has one number, {number}, for '{_short(holders[number])}' and "
                f"'{_short(token)}': correct its vocab.json"
            )
        holders[number] = token
    if outputs is not None:
        special = special_tokens(tokenizer)
        for number, token in sorted(holders.items()):
            if number >= outputs and number not in special:
                return _beyond(f"its tokenizer's number for '{_short(token)}'", number, outputs)
        nameless = [number for number in range(outputs) if number not in holders]
        if nameless:
            return (
                f"the model has {outputs} outputs, but its tokenizer has no token for "
                f"{len(nameless)} of them, the first {nameless[0]}: {ONE_CHECKPOINT}"
            )
    if getattr(tokenizer, "word_delimiter_token", "|") in (None, "None"):
        return (
            "its tokenizer_config.json has no word_delimiter_token, the token for the space "
            "between words: name one"
        )
    letters = [token for token in tokens if len(token) == 1]
    if getattr(tokenizer, "do_lower_case", False) and _has_small_letters_only(letters):
        return (
            "its tokenizer_config.json says do_lower_case, which looks for capitals, but its "
            "vocab.json has small letters only: set do_lower_case to false"
        )
    return None


def decoder_fault(vocabulary: Vocabulary) -> str | None:
    """Why numbers of tokens that steer a decoder cannot be right, or None when they can."""
    tokenizer, configuration = vocabulary.tokenizer, vocabulary.configuration
    generation, outputs = vocabulary.generation, vocabulary.outputs
    if tokenizer.eos_token_id is None:
        return "its tokenizer has no token for the end of text: name one (eos_token)"
    if configuration is None or generation is None:
        return None
    for file, settings in ((CONFIG, configuration), (GENERATION, generation)):
        for name, number in _token_settings(settings):
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                return f"{name} in its {file} is {_shown(number)}, the number of no token"
            if outputs is not None and number >= outputs:
                return _beyond(f"{name} in its {file}", number, outputs)
    start, end = "decoder_start_token_id", "eos_token_id"
    for name in (start, end):
        for file, settings in ((CONFIG, configuration), (GENERATION, generation)):
            if getattr(settings, name, None) is None:
                return f"{name} is missing in its {file}"
    if getattr(configuration, start) != getattr(generation, start):
        return (
            f"{start} is {getattr(configuration, start)} in its {CONFIG} and "
            f"{getattr(generation, start)} in its {GENERATION}: {ONE_CHECKPOINT}"
        )
    ends = _listed(generation.eos_token_id)
    if tokenizer.eos_token_id not in ends:
        return (
            f"the end of text is {tokenizer.eos_token_id} by its tokenizer and {ends[0]} by its "
            f"{GENERATION} ({end}): {ONE_CHECKPOINT}"
        )
    if set(ends) <= set(getattr(generation, "suppress_tokens", None) or ()):
        return f"its {GENERATION} suppresses the end of text (suppress_tokens), so that none ends"
    return None


def beyond_logits(numbers: list[int], vocabulary: Vocabulary) -> str | None:
    """Why the model cannot say a transcript's tokens, or None when it can."""
    outputs = vocabulary.outputs
    if outputs is None or not numbers or max(numbers) < outputs:
        return None
    token = vocabulary.tokenizer.convert_ids_to_tokens(max(numbers))
    return _beyond(f"its tokenizer's number for '{_short(str(token))}'", max(numbers), outputs)


def _token_settings(settings: Any) -> Iterator[tuple[str, Any]]:
    """Name and number of every token that settings speak of; what is no number as it stands."""
    for name in (*SINGLE_TOKENS, *TOKEN_LISTS):
        value = getattr(settings, name, None)
        for number in value if isinstance(value, list) else [value]:
            if number is not None:
                yield name, number
    for name in TOKEN_TABLES:
        value = getattr(settings, name, None) or {}
        for number in value.values() if isinstance(value, dict) else [value]:
            yield name, number
    for pair in _listed(getattr(settings, "forced_decoder_ids", None) or []):
        place, number = pair if isinstance(pair, list) and len(pair) == 2 else (0, pair)
        if number is not None:
            yield "forced_decoder_ids", number if isinstance(place, int) else place


def _listed(tokens: Any) -> list[Any]:
    return tokens if isinstance(tokens, list) else [tokens]


def _beyond(what: str, number: int, outputs: int) -> str:
    return (
        f"{what} is {number}, but the model has {outputs} outputs, 0 to {outputs - 1}: "
        f"{ONE_CHECKPOINT}"
    )


def _has_small_letters_only(letters: list[str]) -> bool:
    return any(map(str.islower, letters)) and not any(map(str.isupper, letters))


def _is(value: object, number: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == number


def _shown(value: object) -> str:
    return "null" if value is None else shorten(repr(value), 40, placeholder="…")


def _short(token: str) -> str:
    return shorten(token, 40, placeholder="…")
