"""Where words lie in a clip, by the path that CTC's greedy decoding takes through its frames."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from hibprune.records.explanation import Span
from hibprune.tasks.tokens import special_tokens


def word_spans(logits: np.ndarray, tokenizer: Any, positions: int) -> tuple[Span, ...]:
    """The words of a clip's logits (frames, tokens), in positions of the encoder's attention.

    A word goes from its first letter's first frame to its last letter's last. Where the tokenizer
    has no sign between words, each token is one.
    """
    special = special_tokens(tokenizer)
    delimiter = getattr(tokenizer, "word_delimiter_token", None) or " "
    between = tokenizer.get_vocab().get(delimiter)
    spans: list[Span] = []
    letters: list[str] = []
    start = end = frame = 0
    scale = positions / len(logits)

    def close() -> None:
        if letters:
            spans.append(Span(text="".join(letters), start=start * scale, end=end * scale))
            letters.clear()

    for number, run in groupby(logits.argmax(-1).tolist()):
        length = len(list(run))
        if number == between or (between is None and number not in special):
            close()
        if number != between and number not in special:
            if not letters:
                start = frame
            letters.append(str(tokenizer.convert_ids_to_tokens(number)))
            end = frame + length
        frame += length
    close()
    return tuple(spans)
