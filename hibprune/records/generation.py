"""What a model with a decoder is told when it is to write a transcript."""

from __future__ import annotations

from hibprune.records.base import Record


class GenerationSettings(Record):
    """How greedy decoding is steered and where it ends.

    `language` is None for models that know one only. `max_tokens_per_second` limits a transcript by
    the seconds the model hears, beside `max_new_tokens`.
    """

    language: str | None = None
    max_new_tokens: int
    max_tokens_per_second: float | None = None

    def max_tokens(self, seconds_heard: float) -> int:
        """The most tokens that may be said about so much sound."""
        if self.max_tokens_per_second is None:
            return self.max_new_tokens
        return min(self.max_new_tokens, max(1, int(seconds_heard * self.max_tokens_per_second)))
