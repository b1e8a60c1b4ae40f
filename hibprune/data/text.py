"""From a text in a manifest or data set to the string a tokenizer takes, or why not."""

from __future__ import annotations

from hibprune.data.utterances import ContentFault, Text


def read_text(text: Text) -> str:
    """The text without white space around it.

    Raises ContentFault when it is empty or no Unicode: JSON can hold halves of characters.
    """
    stripped = text.content.strip()
    if not stripped:
        raise ContentFault("empty")
    try:
        stripped.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ContentFault("holds half a character (a lone surrogate)") from error
    return stripped
