"""Speech recognition with an encoder and a decoder: Whisper, Moonshine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from hibprune.execution.runtime import OnnxModel, Outputs, Predict, Timed, guarded, onnx_model
from hibprune.records.base import Interval
from hibprune.records.generation import GenerationSettings
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import error_rate_interval
from hibprune.records.transcripts import Normaliser
from hibprune.tasks.base import Choice
from hibprune.tasks.decoder_prompt import language_fault, steering_tokens
from hibprune.tasks.languages import ENGLISH, TWO_LETTERS, language_code
from hibprune.tasks.loops import transcript_faults
from hibprune.tasks.measures import Measure
from hibprune.tasks.tokens import beyond_logits, decoder_fault
from hibprune.tasks.transcripts import (
    SpeechRecognition,
    english_fault,
    normaliser_of,
    require_no_boolean,
)
from hibprune.tasks.vocabulary import Batch, Encoded, Target, Vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

ENCODER, MERGED_DECODER = "encoder_model.onnx", "decoder_model_merged.onnx"
"""Names by which Optimum and transformers.js look for the graphs."""
SETTINGS = ("config.json", "generation_config.json")
"""What Optimum looks for beside the graphs. In the directory above, transformers finds the second
by an absolute path only; where it finds none, it takes its own defaults without a word."""

IGNORED = -100


class SpeechRecognitionSeq2Seq(SpeechRecognition):
    """Greedy decoding and word or character error rate.

    The loss is teacher-forced: mean cross-entropy over the tokens of the transcript and the end of
    text. `language` is what a multilingual checkpoint is told, and so that of the transcripts where
    `text` names no other; a checkpoint of one language is taken for English. What stands in
    brackets, and in English hyphens, does not count. `max_tokens_per_second` limits what is said
    about a clip further, by the seconds the model hears, as Moonshine's authors do (6.5) against
    repetition without end; Whisper always hears 30 s.
    """

    kind: Literal["asr-seq2seq"]
    language: str | None = None
    max_new_tokens: int = Field(default=200, ge=1)
    max_tokens_per_second: float | None = Field(default=None, gt=0)

    model_class: ClassVar[str] = "AutoModelForSpeechSeq2Seq"
    export_task: ClassVar[str] = "automatic-speech-recognition-with-past"
    onnx_class: ClassVar[str] = "ORTModelForSpeechSeq2Seq"
    graphs: ClassVar[tuple[str, ...]] = (ENCODER, MERGED_DECODER)
    beside_graphs: ClassVar[tuple[str, ...]] = SETTINGS
    curve_metric: ClassVar[str | None] = "token accuracy"
    usual_english: ClassVar[Normaliser] = "whisper-english"
    hears_annotations: ClassVar[bool] = False

    @field_validator("language", mode="before")
    @classmethod
    def _is_no_boolean(cls, language: object) -> object:
        require_no_boolean(language)
        return language

    @model_validator(mode="after")
    def _transcripts_are_of_what_is_told(self) -> SpeechRecognitionSeq2Seq:
        told = None if self.language is None else language_code(self.language)
        if told is not None and {told, self.text.language} <= TWO_LETTERS:
            if told != self.text.language:
                raise ValueError(
                    f"text.language: '{self.text.language}', but language is '{self.language}': "
                    "leave text.language out"
                )
        elif self.text.normaliser == "whisper-english" and told not in (None, ENGLISH):
            raise ValueError(f"text.{english_fault(told)}")
        return self

    @property
    def _language(self) -> str | None:
        told = None if self.language is None else language_code(self.language)
        return self.text.language or told

    @property
    def generation(self) -> GenerationSettings:
        return GenerationSettings(
            language=self.language,
            max_new_tokens=self.max_new_tokens,
            max_tokens_per_second=self.max_tokens_per_second,
        )

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        if vocabulary.tokenizer is None:
            return "it has no tokenizer"
        fault = decoder_fault(vocabulary) or language_fault(self.language, vocabulary.generation)
        if fault is not None or vocabulary.positions is None:
            return fault
        taken = 1 + len(steering_tokens(self.language, vocabulary.generation))
        if self.max_new_tokens > vocabulary.positions - taken:
            return (
                f"its decoder has positions for {vocabulary.positions} tokens, {taken} of them "
                f"taken before it speaks: set task.max_new_tokens to at most "
                f"{vocabulary.positions - taken}, not {self.max_new_tokens}"
            )
        return None

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        """Tokens the decoder should say after its start token, the end of text last.

        Tokens that only steer it (language, task, no timestamps) come first, as `IGNORED - token`,
        so that they are fed to the decoder but not scored. What looks like a special token in a
        transcript is text like any other.
        """
        tokenizer = vocabulary.tokenizer
        text = " ".join(str(target).split())
        if not text:
            raise ValueError("the transcript is empty")
        # Whisper's own texts begin with a space; its tokenizers are the ones with a prefix.
        spoken = _tokens(tokenizer, f" {text}" if hasattr(tokenizer, "prefix_tokens") else text)
        unknown = tokenizer.unk_token_id
        if unknown in spoken and unknown != tokenizer.eos_token_id:
            words = [word for word in text.split() if unknown in _tokens(tokenizer, word)]
            raise ValueError(
                f"the tokenizer cannot encode {shorten(', '.join(words), 60, placeholder=' …')} "
                f"in '{text}'"
            )
        fault = beyond_logits(spoken, vocabulary)
        if fault is not None:
            raise ValueError(fault)
        steering = steering_tokens(self.language, vocabulary.generation)
        encoded = (*(IGNORED - token for token in steering), *spoken, tokenizer.eos_token_id)
        if vocabulary.positions is not None and len(encoded) > vocabulary.positions:
            raise ValueError(
                f"the transcript takes {len(encoded)} tokens, more than the {vocabulary.positions} "
                "the decoder has positions for: cut the clip into shorter ones"
            )
        return encoded

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Those of a decoder that is fed the truth (batch, tokens, vocabulary)."""
        return teacher_forced(model, batch.inputs, batch.targets)[0]

    def choices(self, logits: Tensor, batch: Batch) -> tuple[Choice, ...]:
        """A choice for each token of the transcript and its end; what steers is not chosen."""
        return (Choice(logits, said_tokens(batch.targets, logits.device) != IGNORED),)

    def loss_of(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        from torch.nn import functional

        said = said_tokens(batch.targets, logits.device)
        losses = functional.cross_entropy(logits.transpose(1, 2), said, reduction="none")
        return losses.sum(1) / (said != IGNORED).sum(1)

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        """The error rate, and the shares of transcripts that are empty or end in a loop."""
        rules = self.transcript_rules(vocabulary)
        faults = transcript_faults(
            list(map(str, predictions)),
            list(map(str, references)),
            normaliser_of(rules, vocabulary),
            rules.counted,
        )
        evaluation = super().evaluate(predictions, references, vocabulary)
        return evaluation.model_copy(update={"faults": faults})

    def measure(self, metric: str, vocabulary: Vocabulary) -> Measure:
        if metric == self.curve_metric:
            return TokenAccuracy(self, vocabulary)
        return super().measure(metric, vocabulary)

    def on_trial(self) -> SpeechRecognitionSeq2Seq:
        return self.model_copy(update={"max_new_tokens": min(2, self.max_new_tokens)})

    def deployed(self, model: PreTrainedModel) -> PreTrainedModel:
        from hibprune.tasks.generation import with_settings

        return with_settings(model, self.generation)

    def deployed_extractor(self, extractor: Any) -> Any:
        from hibprune.tasks.generation import with_mask

        return with_mask(extractor)

    def decoded_tokens(self, references: Sequence[Target], vocabulary: Vocabulary) -> int:
        if not references:
            return self.max_new_tokens
        lengths = [
            sum(token >= 0 for token in self.encode(reference, vocabulary))
            for reference in references
        ]
        return min(self.max_new_tokens, max(1, round(float(np.median(lengths)))))

    def torch_predict(self, model: PreTrainedModel) -> Predict:
        from hibprune.tasks.generation import generate_with

        return generate_with(model, self.generation)

    def onnx_model(self, directory: Path, device: str, threads: int | None = None) -> OnnxModel:
        from hibprune.tasks.generation import generate_with, load_exported

        exported = load_exported(directory, device, threads)
        predict = generate_with(exported, self.generation)
        return onnx_model(guarded(predict, directory), exported.encoder.session)

    def torch_outputs(self, model: PreTrainedModel) -> Outputs:
        from hibprune.tasks.generation import outputs_of

        return outputs_of(model)

    def onnx_outputs(self, directory: Path) -> Outputs:
        from hibprune.tasks.generation import load_exported, outputs_of

        return outputs_of(load_exported(directory, "cpu"))

    def onnx_timed(self, directory: Path, device: str, threads: int, tokens: int | None) -> Timed:
        from hibprune.tasks.generation import load_exported, timed_parts

        exported = load_exported(directory, device, threads)
        return timed_parts(exported, self.generation, tokens or self.max_new_tokens)

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        text = vocabulary.tokenizer.decode(output.tolist(), skip_special_tokens=True)
        return str(text).strip()


def _tokens(tokenizer: Any, text: str) -> list[int]:
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
    return list(encoded.input_ids)


def teacher_forced(
    model: PreTrainedModel, inputs: dict[str, Tensor], targets: Sequence[Encoded]
) -> tuple[Tensor, Tensor]:
    """Logits (batch, tokens, vocabulary) when the decoder is fed the truth, and that truth.

    Of the truth (batch, tokens), steering tokens and padding are `IGNORED`.
    """
    fed, said = fed_tokens(model.config, targets, next(iter(inputs.values())).device)
    logits = model(**inputs, decoder_input_ids=fed, use_cache=False).logits.float()
    return logits, said


def fed_tokens(
    config: Any, targets: Sequence[Encoded], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What a decoder is fed so that it should say some texts, and what it should then say.

    Both (batch, tokens): its start token and all of a text but the end; and the truth, in which
    steering tokens and padding are `IGNORED`.
    """
    import torch

    said = _stacked(targets, device)
    fed = torch.where(said < IGNORED, IGNORED - said, said)
    fed = fed.masked_fill(said == IGNORED, config.eos_token_id)
    start = torch.full_like(fed[:, :1], config.decoder_start_token_id)
    return torch.cat([start, fed[:, :-1]], dim=1), said.masked_fill(said < 0, IGNORED)


def said_tokens(targets: Sequence[Encoded], device: torch.device) -> Tensor:
    """What a decoder should say (batch, tokens); steering tokens and padding are `IGNORED`."""
    said = _stacked(targets, device)
    return said.masked_fill(said < 0, IGNORED)


def _stacked(targets: Sequence[Encoded], device: torch.device) -> Tensor:
    """Encoded targets (batch, tokens), `IGNORED` behind their ends."""
    import torch

    longest = max(len(target) for target in targets)
    stacked = torch.full((len(targets), longest), IGNORED, device=device)
    for place, target in enumerate(targets):
        stacked[place, : len(target)] = torch.tensor(target, device=device)
    return stacked


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
        import torch

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
        low, high = error_rate_interval(wrong, tokens)

        return Evaluation(
            metric="token accuracy",
            value=1 - sum(wrong) / sum(tokens),
            interval=Interval(1 - high, 1 - low),
            n=len(references),
            higher_is_better=True,
            errors=tuple(wrong),
            counted=tuple(tokens),
        )
