"""The files that sherpa-onnx loads."""

from __future__ import annotations

from hibprune.records.base import Record


class SherpaFiles(Record):
    """Their places in the directory, and the code of the `language` to tell, where there is one.

    `relative_diff` is how far the logits of the graphs are from PyTorch's, as a share of the
    largest.
    """

    encoder: str
    decoder: str
    tokens: str
    language: str | None
    relative_diff: float

    @property
    def paths(self) -> tuple[str, ...]:
        return self.encoder, self.decoder, self.tokens
