"""What stands between the data and a model: reads a clip or a text and makes the model's inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor

from hibprune.data import (
    AudioFile,
    Content,
    ContentFault,
    DurationLimits,
    Text,
    read_text,
    read_waveform,
)
from hibprune.errors import UserError
from hibprune.models.families import family_of
from hibprune.records.medium import SOUND, TEXT, Length, Medium

UNREADABLE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError
)  # fmt: skip
"""What transformers raises over damaged files and settings of the wrong type."""
PARTS = {
    "AutoConfig": "its config.json",
    "AutoFeatureExtractor": "its feature extractor (preprocessor_config.json)",
    "AutoTokenizer": "its tokenizer (tokenizer_config.json, vocab.json)",
}

Reading = np.ndarray | str
"""A waveform (samples,), or a text."""


class Preprocessor(ABC):
    """Makes a model's inputs of one medium, with the part of the checkpoint that knows how."""

    medium: ClassVar[Medium]

    @property
    @abstractmethod
    def part(self) -> Any:
        """The feature extractor or tokenizer itself."""

    @property
    @abstractmethod
    def longest(self) -> float:
        """The longest input that the model takes whole, in the medium's unit."""

    @abstractmethod
    def content(self, argument: str) -> Content:
        """What a person names on the command line: a sound file, or a text itself."""

    @abstractmethod
    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """What `inputs` take; `limits` hold for sound. Raises ContentFault."""

    @abstractmethod
    def inputs(self, reading: Reading) -> dict[str, Tensor]:
        """The model's inputs for one clip or text, in a batch of 1, without padding."""

    @abstractmethod
    def example(self, length: Length, batch: int) -> dict[str, Tensor]:
        """Inputs made of seeded noise, `batch` of one length: what shapes and speed depend on."""

    def beginning(self, reading: Reading, seconds: float) -> Reading:
        """The first seconds of a clip. Raises TypeError for what has no seconds."""
        raise TypeError(f"{self.medium.name} has no seconds")

    def length_fault(self, length: Length) -> str | None:
        """Why an example cannot have this length, or None when it can."""
        if length.value <= self.longest:
            return None
        longest = Length(value=self.longest, unit=length.unit)
        return f"{length} is more than the {longest} that the model takes"


@dataclass(frozen=True)
class SoundPreprocessor(Preprocessor):
    """A feature extractor of transformers."""

    feature_extractor: Any

    medium: ClassVar[Medium] = SOUND

    @property
    def part(self) -> Any:
        return self.feature_extractor

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the model wants."""
        return int(self.feature_extractor.sampling_rate)

    @property
    def longest(self) -> float:
        """Whisper's window is 30 s; other models take any length."""
        return float(getattr(self.feature_extractor, "chunk_length", math.inf))

    def content(self, argument: str) -> Content:
        return AudioFile(Path(argument))

    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """Mono float32 at the model's sampling rate."""
        assert not isinstance(content, Text)
        return read_waveform(content, self.sampling_rate, limits.up_to(self.longest))

    def beginning(self, reading: Reading, seconds: float) -> Reading:
        return reading[: round(seconds * self.sampling_rate)]

    def inputs(self, reading: Reading) -> dict[str, Tensor]:
        """Also takes (batch, samples): clips of equal length."""
        features = self.feature_extractor(
            list(np.atleast_2d(reading)), sampling_rate=self.sampling_rate, return_tensors="pt"
        )
        name = self.feature_extractor.model_input_names[0]
        return {name: features[name]}

    def example(self, length: Length, batch: int) -> dict[str, Tensor]:
        samples = round(length.value * self.sampling_rate)
        noise = np.random.default_rng(0).standard_normal((batch, samples)) * 0.1
        return self.inputs(noise.astype(np.float32))


@dataclass(frozen=True)
class TextPreprocessor(Preprocessor):
    """A tokenizer of transformers; `names` of what it gives out are the model's inputs."""

    tokenizer: Any
    names: tuple[str, ...]
    max_tokens: int

    medium: ClassVar[Medium] = TEXT

    @property
    def part(self) -> Any:
        return self.tokenizer

    @property
    def longest(self) -> float:
        return self.max_tokens

    def content(self, argument: str) -> Content:
        return Text(argument)

    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """The text, if the model takes all of it: cut short, it may mean something else.

        Raises ContentFault also where the tokenizer knows none of it.
        """
        assert isinstance(content, Text)
        text = read_text(content)
        numbers = self.tokenizer(text).input_ids
        if len(numbers) > self.max_tokens:
            raise ContentFault(f"longer than {self.max_tokens} tokens ({len(numbers)} tokens)")
        if not set(numbers) - set(self.tokenizer.all_special_ids):
            raise ContentFault("nothing in it that the tokenizer knows")
        return text

    def inputs(self, reading: Reading) -> dict[str, Tensor]:
        encoded = self.tokenizer(
            [reading],
            return_tensors="pt",
            return_attention_mask=True,
            return_token_type_ids="token_type_ids" in self.names,
        )
        return {name: encoded[name] for name in self.names}

    def example(self, length: Length, batch: int) -> dict[str, Tensor]:
        special = set(self.tokenizer.all_special_ids)
        words = torch.tensor(sorted(set(self.tokenizer.get_vocab().values()) - special))
        shape = (batch, int(length.value))
        drawn = torch.randint(len(words), shape, generator=torch.Generator().manual_seed(0))
        made = {
            "input_ids": words[drawn],
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "token_type_ids": torch.zeros(shape, dtype=torch.long),
        }
        return {name: made[name] for name in self.names}


def load_preprocessor(medium: Medium, config: Any, directory: Path, source: str) -> Preprocessor:
    """What prepares the inputs of the model in a directory; `source` is its name for errors.

    Raises:
        UserError: it is not there or cannot be read, or there is none for this type of model.
    """
    if medium is SOUND:
        return SoundPreprocessor(pretrained("AutoFeatureExtractor", directory, source))
    tokenizer = pretrained("AutoTokenizer", directory, source)
    family = family_of(config.model_type, source)
    positions = int(config.max_position_embeddings)
    if family.positions_after_padding:
        positions -= int(config.pad_token_id) + 1
    # A tokenizer that was told no limit says a very large number.
    longest = min(positions, int(tokenizer.model_max_length))
    return TextPreprocessor(tokenizer, family.tokenizer_outputs, longest)


def class_names(config: Any) -> tuple[str, ...]:
    """The labels of a model's classes, in the order of its outputs."""
    return tuple(config.id2label[number] for number in sorted(config.id2label))


def pretrained(auto_class: str, directory: Path, source: str, **options: Any) -> Any:
    """A part of a checkpoint on this disk, by the Auto class of transformers that reads it.

    Raises:
        UserError: it is not there or damaged.
    """
    try:
        return getattr(transformers, auto_class).from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, **options
        )
    except UNREADABLE as error:
        part = PARTS.get(auto_class, "its weights (model.safetensors)")
        reason = shorten(str(error) or repr(error), 200, placeholder=" …")
        raise UserError(f"{source}: cannot read {part}: {reason}") from error
