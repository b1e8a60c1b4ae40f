"""Speech recognition with an encoder and a decoder: Whisper, Moonshine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from hibprune.data import TargetFields
from hibprune.errors import UserError
from hibprune.records import Evaluation, Interval
from hibprune.runtime import (
    ONNX_DIRECTORY,
    PROVIDERS,
    Predict,
    onnx_session,
    require_provider,
    session_options,
)
from hibprune.statistics import bootstrap_interval
from hibprune.tasks.base import Batch, Encoded, Target, TaskBase, Vocabulary
from hibprune.tasks.measures import Measure
from hibprune.tasks.wer import word_error_rate

IGNORED = -100
TIMED_TOKENS = 20


class SpeechRecognitionSeq2Seq(TaskBase):
    """Greedy decoding and word error rate (WER).

    The loss is teacher-forced: mean cross-entropy over the tokens of the transcript and the end of
    text. Before words are compared, hyphens become spaces and Whisper's English normaliser is
    applied to both sides. `language` is for multilingual checkpoints only.
    """

    kind: Literal["asr-seq2seq"]
    language: str | None = None
    max_new_tokens: int = Field(default=200, ge=1)

    model_class: ClassVar[str] = "AutoModelForSpeechSeq2Seq"
    export_task: ClassVar[str] = "automatic-speech-recognition-with-past"
    onnx_class: ClassVar[str] = "ORTModelForSpeechSeq2Seq"
    graphs: ClassVar[tuple[str, ...]] = (
        "encoder_model.onnx",
        "decoder_model.onnx",
        "decoder_with_past_model.onnx",
    )
    metric: ClassVar[str] = "WER"
    higher_is_better: ClassVar[bool] = False
    curve_metric: ClassVar[str | None] = "token accuracy"

    @property
    def fields(self) -> TargetFields:
        return TargetFields("text")

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        if vocabulary.tokenizer is None:
            return "it has no tokenizer"
        multilingual = "<|en|>" in vocabulary.tokenizer.get_vocab() and vocabulary.multilingual
        if multilingual and self.language is None:
            return "it is multilingual: set task.language, e.g. en"
        if not multilingual and self.language is not None:
            return "it is not multilingual: leave task.language out"
        return None

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        """Tokens the decoder should say after its start token, the end of text last.

        Tokens that only steer it (language, task, no timestamps) come first, as `IGNORED - token`,
        so that they are fed to the decoder but not scored.
        """
        tokenizer = vocabulary.tokenizer
        text = " ".join(str(target).split())
        if not text:
            raise ValueError("the transcript is empty")
        if self.language is not None:
            tokenizer.set_prefix_tokens(language=self.language, task="transcribe")
        # The first prefix token starts the transcript: the decoder is fed it in any case.
        steering = (getattr(tokenizer, "prefix_tokens", None) or [])[1:]
        spoken = tokenizer(f" {text}" if steering else text, add_special_tokens=False).input_ids
        if tokenizer.unk_token_id in spoken and tokenizer.unk_token_id != tokenizer.eos_token_id:
            raise ValueError(f"the tokenizer cannot encode '{text}'")
        return (*(IGNORED - token for token in steering), *spoken, tokenizer.eos_token_id)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits, said = teacher_forced(model, batch.inputs, batch.targets)
        losses = functional.cross_entropy(logits.transpose(1, 2), said, reduction="none")
        return losses.sum(1) / (said != IGNORED).sum(1)

    def measure(self, metric: str, vocabulary: Vocabulary) -> Measure:
        if metric == self.curve_metric:
            return TokenAccuracy(self, vocabulary)
        return super().measure(metric, vocabulary)

    def torch_predict(self, model: PreTrainedModel) -> Predict:
        device = next(model.parameters()).device
        return self._generating(model, device)

    def onnx_predict(self, directory: Path, device: str, threads: int | None = None) -> Predict:
        return self._generating(self._exported(directory, device, threads), torch.device("cpu"))

    def onnx_timed(self, directory: Path, device: str, threads: int) -> Predict:
        """Encode and decode a fixed number of tokens, whatever they are."""
        return self._generating(
            self._exported(directory, device, threads),
            torch.device("cpu"),
            min_new_tokens=TIMED_TOKENS,
            max_new_tokens=TIMED_TOKENS,
        )

    def _generating(self, model: Any, device: torch.device, **limits: int) -> Predict:
        limits = {"max_new_tokens": self.max_new_tokens, **limits}
        steer = {} if self.language is None else {"language": self.language, "task": "transcribe"}

        def predict(inputs: dict[str, Tensor]) -> np.ndarray:
            with torch.inference_mode():
                tokens = model.generate(
                    **{name: value.to(device) for name, value in inputs.items()},
                    do_sample=False,
                    num_beams=1,
                    **limits,
                    **steer,
                )
            return np.asarray(tokens.cpu())

        return predict

    def _exported(self, directory: Path, device: str, threads: int | None) -> Any:
        from optimum.onnxruntime import ORTModelForSpeechSeq2Seq

        provider = PROVIDERS[device]
        try:
            exported = ORTModelForSpeechSeq2Seq.from_pretrained(
                directory,
                subfolder=ONNX_DIRECTORY,
                provider=provider,
                session_options=session_options(device, threads),
                use_merged=False,
                local_files_only=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{directory}: ONNX Runtime cannot load it: {str(error).splitlines()[0][:200]}"
            ) from error
        require_provider(exported.encoder.session, provider, directory)
        return exported

    def torch_states(self, model: PreTrainedModel) -> Predict:
        def states(inputs: dict[str, Tensor]) -> np.ndarray:
            with torch.inference_mode():
                return np.asarray(model.get_encoder()(**inputs).last_hidden_state)

        return states

    def onnx_states(self, directory: Path) -> Predict:
        session = onnx_session(directory / ONNX_DIRECTORY / self.graphs[0], "cpu")

        def states(inputs: dict[str, Tensor]) -> np.ndarray:
            feed = {name: value.numpy() for name, value in inputs.items()}
            return np.asarray(session.run(["last_hidden_state"], feed)[0])

        return states

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        text = vocabulary.tokenizer.decode(output.tolist(), skip_special_tokens=True)
        return str(text).strip()

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        return word_error_rate(predictions, references, english_normaliser(vocabulary.tokenizer))


def teacher_forced(
    model: PreTrainedModel, inputs: dict[str, Tensor], targets: Sequence[Encoded]
) -> tuple[Tensor, Tensor]:
    """Logits (batch, tokens, vocabulary) when the decoder is fed the truth, and that truth.

    Of the truth (batch, tokens), steering tokens and padding are `IGNORED`.
    """
    device = next(iter(inputs.values())).device
    longest = max(len(target) for target in targets)
    said = torch.full((len(targets), longest), IGNORED, device=device)
    for place, target in enumerate(targets):
        said[place, : len(target)] = torch.tensor(target, device=device)
    steering = said < IGNORED
    fed = torch.where(steering, IGNORED - said, said)
    fed = fed.masked_fill(said == IGNORED, model.config.eos_token_id)
    start = torch.full_like(fed[:, :1], model.config.decoder_start_token_id)
    fed = torch.cat([start, fed[:, :-1]], dim=1)
    logits = model(**inputs, decoder_input_ids=fed, use_cache=False).logits.float()
    return logits, said.masked_fill(said < 0, IGNORED)


@dataclass(frozen=True)
class TokenAccuracy(Measure):
    """Share of the tokens of the transcripts, ends of text included, that come first in the logits.

    The decoder is fed the truth, so that a clip costs one pass where WER costs one for each token.
    """

    task: SpeechRecognitionSeq2Seq
    vocabulary: Vocabulary

    def answers(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], targets: Sequence[Target]
    ) -> list[Any]:
        """Tokens that are wrong and tokens in all, for each clip."""
        device = next(model.parameters()).device
        on_device = {name: value.to(device) for name, value in inputs.items()}
        encoded = [self.task.encode(target, self.vocabulary) for target in targets]
        with torch.inference_mode():
            logits, said = teacher_forced(model, on_device, encoded)
        scored = said != IGNORED
        wrong = (logits.argmax(-1) != said) & scored
        return list(zip(wrong.sum(1).tolist(), scored.sum(1).tolist(), strict=True))

    def evaluate(self, answers: Sequence[Any], references: Sequence[Target]) -> Evaluation:
        wrong, tokens = ([float(answer[place]) for answer in answers] for place in (0, 1))

        def share(wrong: np.ndarray, tokens: np.ndarray, axis: int) -> np.ndarray:
            return np.asarray(1 - wrong.sum(axis=axis) / tokens.sum(axis=axis))

        return Evaluation(
            metric="token accuracy",
            value=1 - sum(wrong) / sum(tokens),
            interval=Interval(*bootstrap_interval([wrong, tokens], share)),
            n=len(references),
            higher_is_better=True,
            errors=tuple(wrong),
            counted=tuple(tokens),
        )


def english_normaliser(tokenizer: Any) -> Callable[[str], str]:
    """Whisper's English normaliser after hyphens became spaces.

    With the tokenizer's own table of spellings where it has one.
    """
    spellings = getattr(tokenizer, "english_spelling_normalizer", None) or {}
    normaliser = EnglishTextNormalizer(spellings)

    def normalise(text: str) -> str:
        return str(normaliser(text.replace("-", " ")))

    return normalise
