"""What tasks of speech recognition share: transcripts, and how they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from hibprune.data import TargetFields
from hibprune.records.base import Settings
from hibprune.records.measurements import Evaluation
from hibprune.records.transcripts import Normaliser, TranscriptRules
from hibprune.tasks.base import TaskBase
from hibprune.tasks.error_rate import NAMES, error_rate, is_unspaced, unmeasurable
from hibprune.tasks.languages import ENGLISH, UNSPACED, spoken_language
from hibprune.tasks.normalising import as_written, english_normaliser, normalised
from hibprune.tasks.vocabulary import Target, Vocabulary

QUOTED = "YAML reads a bare no or off as false: write it in quotes"


def english_fault(language: str | None) -> str:
    """Why English rules are refused: they take accents and marks away."""
    return (
        f"normaliser: whisper-english is for English, not for '{language}': use unicode, "
        "which keeps what other languages write"
    )


class TextSettings(Settings):
    """How transcripts are compared with what a model says.

    `language` is that of the transcripts, by code (`de`, `tur`) or English name. `normaliser`
    makes both sides alike before anything is counted: `unicode` folds capitals as the language
    does, unifies forms of one character and drops punctuation, but never an accent or a vowel
    sign; `whisper-english` also spells English numbers, contractions and variants in one way;
    `none` takes texts as they are. The default is `unicode`, for English by an encoder and a
    decoder `whisper-english`.
    """

    language: str | None = None
    normaliser: Normaliser | None = None

    @field_validator("language", mode="before")
    @classmethod
    def _is_a_language(cls, language: object) -> object:
        require_no_boolean(language)
        return spoken_language(language) if isinstance(language, str) else language

    @model_validator(mode="after")
    def _english_rules_for_english(self) -> TextSettings:
        if self.normaliser == "whisper-english" and self.language not in (None, ENGLISH):
            raise ValueError(english_fault(self.language))
        return self


def require_no_boolean(language: object) -> None:
    """Raise ValueError for what YAML makes of the code of Norwegian, no, where it is not quoted."""
    if isinstance(language, bool):
        raise ValueError(f"should be a language, not {str(language).lower()}: {QUOTED}")


class SpeechRecognition(TaskBase):
    """Transcripts, and word or character error rate.

    `metric` is `wer` or `cer`; the default is `cer` for languages that are written without spaces
    between words, such as Japanese, Chinese and Thai, and `wer` for others.
    """

    text: TextSettings = TextSettings()
    metric: Literal["wer", "cer"] | None = None

    higher_is_better: ClassVar[bool] = False
    usual_english: ClassVar[Normaliser] = "unicode"
    """The normaliser of English transcripts where the recipe names none."""
    hears_annotations: ClassVar[bool] = True
    """Whether what stands in brackets in a transcript counts as said."""

    @property
    def fields(self) -> TargetFields:
        return TargetFields("text")

    @property
    def metric_name(self) -> str:
        return NAMES["character" if self._by_character else "word"]

    @property
    def _by_character(self) -> bool:
        return self._language in UNSPACED if self.metric is None else self.metric == "cer"

    @property
    def _language(self) -> str | None:
        """The code of the language of the transcripts, as far as the recipe tells it."""
        return self.text.language

    def transcript_rules(self, vocabulary: Vocabulary) -> TranscriptRules:
        language = self._language or _only_language(vocabulary.generation)
        usual: Normaliser = self.usual_english if language == ENGLISH else "unicode"
        return TranscriptRules(
            counted="character" if self._by_character else "word",
            normaliser=self.text.normaliser or usual,
            language=language,
            annotations=self.hears_annotations,
        )

    def references_fault(self, references: Sequence[Target], vocabulary: Vocabulary) -> str | None:
        rules = self.transcript_rules(vocabulary)
        return unmeasurable(_texts(references), normaliser_of(rules, vocabulary), rules.counted)

    def references_note(self, references: Sequence[Target], vocabulary: Vocabulary) -> str | None:
        if self.metric is not None or self._by_character or not is_unspaced(_texts(references)):
            return None
        return (
            "the transcripts are in a script without spaces between words, which WER counts: set "
            "task.metric: cer, or the language as task.text.language"
        )

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        """WER over all words, or CER over all characters, with a 95 % interval."""
        rules = self.transcript_rules(vocabulary)
        return error_rate(
            _texts(predictions),
            _texts(references),
            normaliser_of(rules, vocabulary),
            rules.counted,
        )


def normaliser_of(rules: TranscriptRules, vocabulary: Vocabulary) -> Callable[[str], str]:
    """What both sides go through; the tokenizer may have a table of English spellings."""
    if rules.normaliser == "none":
        return as_written
    if rules.normaliser == "whisper-english":
        return english_normaliser(vocabulary.tokenizer)
    return lambda text: normalised(text, rules.language, rules.annotations)


def _only_language(generation: Any) -> str | None:
    """English for a checkpoint that says it knows one language: Whisper's are of English."""
    return ENGLISH if getattr(generation, "is_multilingual", None) is False else None


def _texts(targets: Sequence[Target]) -> list[str]:
    return [str(target) for target in targets]
