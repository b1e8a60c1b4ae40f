"""Speech recognition with CTC."""

from __future__ import annotations

import unicodedata
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from hibprune.tasks.base import Choice
from hibprune.tasks.normalising import lowered, uppered
from hibprune.tasks.tokens import blank_fault, delimiter_fault, letters_fault, special_tokens
from hibprune.tasks.transcripts import SpeechRecognition
from hibprune.tasks.vocabulary import Batch, Encoded, Probabilities, Target, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class SpeechRecognitionCTC(SpeechRecognition):
    """Greedy CTC decoding and word or character error rate.

    Special tokens of the tokenizer are no text: what a model says of `<s>` or `<unk>` is left out.
    """

    kind: Literal["asr-ctc"]

    model_class: ClassVar[str] = "AutoModelForCTC"
    export_task: ClassVar[str] = "automatic-speech-recognition"
    onnx_class: ClassVar[str] = "ORTModelForCTC"

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        if vocabulary.tokenizer is None:
            return "it has no tokenizer"
        return letters_fault(vocabulary) or blank_fault(vocabulary)

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        """Tokens of the transcript, in the case and Unicode form of letters the tokenizer knows."""
        tokenizer = vocabulary.tokenizer
        tokens: dict[str, int] = tokenizer.get_vocab()
        text = " ".join(str(target).split())
        if not any(token.islower() for token in tokens if len(token) == 1):
            text = uppered(text, self.text.language)
        elif not any(token.isupper() for token in tokens if len(token) == 1):
            text = lowered(text, self.text.language)
        if not text:
            raise ValueError("the transcript is empty")
        if delimiter_fault(tokenizer, tokens) is not None:
            if self.metric_name == "WER" and " " in text:
                raise ValueError(f"{delimiter_fault(tokenizer, tokens)}, as in '{target}'")
            text = text.replace(" ", "")
        text, numbers = _in_known_form(text, tokenizer)
        if _unknown(numbers, tokenizer):
            known = tokens.keys() | {" "}
            unknown = sorted({letter for letter in text if letter not in known})
            raise ValueError(f"the tokenizer cannot encode {unknown} in '{target}'")
        special = special_tokens(tokenizer)
        token = next((special[number] for number in numbers if number in special), None)
        if token is not None:
            raise ValueError(
                f"'{token}' in '{target}' is no text but a special token of the tokenizer: "
                "correct the transcript"
            )
        return tuple(number for number in numbers if number is not None)

    def choices(self, logits: Tensor, batch: Batch) -> tuple[Choice, ...]:
        """A choice for each frame."""
        import torch

        frames = torch.arange(logits.shape[1], device=logits.device)
        own = torch.tensor(batch.logits, device=logits.device)
        return (Choice(logits, frames < own[:, None]),)

    def loss_of(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        """CTC loss divided by the number of target tokens, torch's and SUPERB's 'mean'."""
        import torch
        from torch.nn import functional

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
        tokenizer = vocabulary.tokenizer
        numbers = [number for number, _ in groupby(output.argmax(-1).tolist())]
        special = special_tokens(tokenizer)
        said = [number for number in numbers if number not in special]
        # Repeated letters were merged above, while the blanks between them were still there.
        merged = {"group_tokens": False} if hasattr(tokenizer, "word_delimiter_token") else {}
        return str(tokenizer.decode(said, **merged))

    def without_padding(self, output: np.ndarray, frames: int) -> np.ndarray:
        return output[:frames]

    def probabilities(self, output: np.ndarray, vocabulary: Vocabulary) -> Probabilities:
        """Of each token said, the highest that one of its frames gives it."""
        tokenizer, special = vocabulary.tokenizer, special_tokens(vocabulary.tokenizer)
        shifted = output.astype(np.float64) - output.max(-1, keepdims=True)
        highest = 1 / np.exp(shifted).sum(-1)
        said = groupby(
            zip(output.argmax(-1).tolist(), highest.tolist(), strict=True), itemgetter(0)
        )
        return [
            (str(tokenizer.convert_ids_to_tokens(number)), max(share for _, share in frames))
            for number, frames in said
            if number not in special
        ]


def _in_known_form(text: str, tokenizer: Any) -> tuple[str, list[int | None]]:
    """A text in the Unicode form that the tokenizer knows all letters of, if any, with its tokens.

    An accent may be part of a letter or stand behind it, a Korean syllable be whole or in letters.
    """
    forms = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))]
    encoded = [tokenizer(form, add_special_tokens=False).input_ids for form in forms]
    known = [not _unknown(numbers, tokenizer) for numbers in encoded]
    best = known.index(True) if any(known) else 0
    return forms[best], encoded[best]


def _unknown(numbers: list[int | None], tokenizer: Any) -> bool:
    # A tokenizer without a token for unknown letters gives them no number at all.
    return None in numbers or tokenizer.unk_token_id in numbers
