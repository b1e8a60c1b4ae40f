"""Speech recognition with CTC."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.data import TargetFields
from hibprune.records.measurements import Evaluation
from hibprune.tasks.base import Batch, Encoded, Target, TaskBase, Vocabulary
from hibprune.tasks.wer import word_error_rate, wordless_fault


class SpeechRecognitionCTC(TaskBase):
    """Greedy CTC decoding and word error rate (WER).

    Before words are compared, both sides are normalised by `normalise_words`.
    """

    kind: Literal["asr-ctc"]

    model_class: ClassVar[str] = "AutoModelForCTC"
    export_task: ClassVar[str] = "automatic-speech-recognition"
    onnx_class: ClassVar[str] = "ORTModelForCTC"
    metric: ClassVar[str] = "WER"
    higher_is_better: ClassVar[bool] = False

    @property
    def fields(self) -> TargetFields:
        return TargetFields("text")

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        return None if vocabulary.tokenizer is not None else "it has no tokenizer"

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        """Tokens of the transcript, in the case of letters that the tokenizer knows."""
        tokenizer = vocabulary.tokenizer
        tokens: dict[str, int] = tokenizer.get_vocab()
        text = " ".join(str(target).split())
        if not any(token.islower() for token in tokens if len(token) == 1):
            text = text.upper()
        elif not any(token.isupper() for token in tokens if len(token) == 1):
            text = text.lower()
        numbers = tokenizer(text).input_ids
        if tokenizer.unk_token_id in numbers:
            known = tokens.keys() | {" "}
            unknown = sorted({letter for letter in text if letter not in known})
            raise ValueError(f"the tokenizer cannot encode {unknown} in '{target}'")
        if not numbers:
            raise ValueError("the transcript is empty")
        return tuple(numbers)

    def references_fault(self, references: Sequence[Target], vocabulary: Vocabulary) -> str | None:
        return wordless_fault(references, normalise_words)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """CTC loss divided by the number of target tokens, torch's and SUPERB's 'mean'."""
        logits = model(**batch.inputs).logits.float()
        lengths = torch.tensor([len(target) for target in batch.targets], device=logits.device)
        losses = functional.ctc_loss(
            functional.log_softmax(logits, dim=-1).transpose(0, 1),
            torch.tensor([t for target in batch.targets for t in target], device=logits.device),
            torch.tensor(batch.logits, device=logits.device),
            lengths,
            blank=model.config.pad_token_id,
            reduction="none",
            # A transcript with more tokens than frames has no path and an infinite loss.
            zero_infinity=True,
        )
        return losses / lengths

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        return str(vocabulary.tokenizer.decode(output.argmax(-1).tolist()))

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        """WER over all words, with a 95 % bootstrap interval over utterances."""
        return word_error_rate(predictions, references, normalise_words)


def normalise_words(text: str) -> str:
    """Text as WER compares it: NFKC, lower case, no punctuation but apostrophes, single spaces."""
    lowered = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w\s']|_", " ", lowered).split())
