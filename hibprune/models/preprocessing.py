"""What stands between the data and a model: reads a clip or a text and makes the model's inputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hibprune.data import (
    NO_LIMITS,
    AudioFile,
    Content,
    ContentFault,
    DurationLimits,
    Text,
    read_text,
    read_waveform,
)
from hibprune.errors import UserError
from hibprune.models.extractor import features_of, longest_heard, require_sane_settings
from hibprune.models.families import family_of
from hibprune.models.parts import plain_faults, pretrained
from hibprune.models.source import EXTRACTOR_FILES, read_json
from hibprune.models.staging import MAX_SETTINGS_BYTES, StagedCheckpoint
from hibprune.records.medium import SOUND, TEXT, Length, Medium

Reading = np.ndarray | str
"""A waveform (samples,), or a text."""


class Preprocessor(ABC):
    """Makes a model's inputs of one medium, with the part of the checkpoint that knows how."""

    medium: ClassVar[Medium]

    @property
    @abstractmethod
    def part(self) -> Any:
        """The feature extractor or tokenizer itself."""

    shortest: float
    longest: float
    """The shortest and longest inputs that the model takes whole, in the medium's unit."""

    @abstractmethod
    def content(self, argument: str) -> Content:
        """What a person names on the command line: a sound file, or a text itself."""

    @abstractmethod
    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """What `inputs` take; `limits` hold for sound. Raises ContentFault."""

    def read_as_deployed(self, content: Content) -> Reading:
        """The same within the model's own limits alone; digital silence is a clip like any other.

        Raises ContentFault.
        """
        return self.read(content, NO_LIMITS)

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
        """Why an example cannot have this length, and what to do; None when it can."""
        if length.value < self.shortest:
            shortest = Length(value=self.shortest, unit=length.unit)
            return f"{length} is less than the {shortest} that the model needs: set longer ones"
        if length.value > self.longest:
            longest = Length(value=self.longest, unit=length.unit)
            return f"{length} is more than the {longest} that the model takes: set shorter ones"
        return None


@dataclass(frozen=True)
class SoundPreprocessor(Preprocessor):
    """A feature extractor of transformers, and the shortest and longest clips in seconds.

    Longer ones would be cut; for shorter ones the model gives nothing out.
    """

    feature_extractor: Any
    longest: float = math.inf
    shortest: float = 0.0

    medium: ClassVar[Medium] = SOUND

    @property
    def part(self) -> Any:
        return self.feature_extractor

    @property
    def sampling_rate(self) -> int:
        """Samples per second that the model wants."""
        return int(self.feature_extractor.sampling_rate)

    def content(self, argument: str) -> Content:
        return AudioFile(Path(argument))

    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """Mono float32 at the model's sampling rate."""
        return self._read(content, limits)

    def read_as_deployed(self, content: Content) -> Reading:
        return self._read(content, NO_LIMITS, allow_silence=True)

    def _read(
        self, content: Content, limits: DurationLimits, allow_silence: bool = False
    ) -> Reading:
        assert not isinstance(content, Text)
        within = limits.within(self.shortest, self.longest)
        return read_waveform(content, self.sampling_rate, within, allow_silence)

    def beginning(self, reading: Reading, seconds: float) -> Reading:
        return reading[: round(seconds * self.sampling_rate)]

    def inputs(self, reading: Reading) -> dict[str, Tensor]:
        """Also takes (batch, samples): clips of equal length."""
        name, features = features_of(self.feature_extractor, np.asarray(reading))
        return {name: features}

    def example(self, length: Length, batch: int) -> dict[str, Tensor]:
        return self.inputs(self.noise(length, batch))

    def noise(self, length: Length, batch: int) -> np.ndarray:
        """Seeded clips (batch, samples) of noise."""
        samples = round(length.value * self.sampling_rate)
        noise = np.random.default_rng(0).standard_normal((batch, samples)) * 0.1
        return noise.astype(np.float32)


@dataclass(frozen=True)
class TextPreprocessor(Preprocessor):
    """A tokenizer of transformers; `names` of what it gives out are the model's inputs."""

    tokenizer: Any
    names: tuple[str, ...]
    longest: float
    shortest: float = 1.0

    medium: ClassVar[Medium] = TEXT

    @property
    def part(self) -> Any:
        return self.tokenizer

    def content(self, argument: str) -> Content:
        return Text(argument)

    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """The text, if the model takes all of it: cut short, it may mean something else.

        Raises ContentFault also where the tokenizer knows none of it.
        """
        assert isinstance(content, Text)
        text = read_text(content)
        numbers = self.tokenizer(text).input_ids
        if len(numbers) > self.longest:
            raise ContentFault(f"longer than {self.longest} tokens ({len(numbers)} tokens)")
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


def load_preprocessor(medium: Medium, config: Any, staged: StagedCheckpoint) -> Preprocessor:
    """What prepares the inputs of a model; its feature extractor is tried for what it hears.

    Raises:
        UserError: it is not there or cannot be read, or says what cannot be.
    """
    if medium is SOUND:
        for name in EXTRACTOR_FILES:
            if (staged.directory / name).is_file():
                place = f"{staged.source}: cannot read its {name}"
                settings = read_json(staged.directory / name, place, MAX_SETTINGS_BYTES)
                require_sane_settings(settings, staged)
        extractor = pretrained("AutoFeatureExtractor", staged)
        return SoundPreprocessor(extractor, longest_heard(extractor, staged))
    tokenizer = pretrained("AutoTokenizer", staged)
    family = family_of(config.model_type, staged.source)
    with plain_faults(f"{staged.source}: its longest text cannot be told", staged):
        positions = int(config.max_position_embeddings)
        if family.positions_after_padding:
            positions -= int(config.pad_token_id) + 1
        # A tokenizer that was told no limit says a very large number.
        longest = min(positions, int(tokenizer.model_max_length))
        special = tokenizer.num_special_tokens_to_add()
    if longest <= special:
        raise UserError(
            f"{staged.source}: takes texts of at most {longest} tokens (config.json: "
            "max_position_embeddings; tokenizer_config.json: model_max_length): mend them"
        )
    return TextPreprocessor(tokenizer, family.tokenizer_outputs, longest)


def class_names(config: Any) -> tuple[str, ...]:
    """The labels of a model's classes, in the order of its outputs."""
    return tuple(str(config.id2label[number]) for number in sorted(config.id2label))


def output_size(model: torch.nn.Module) -> int:
    """How many logits a model gives out for a clip, a frame or a token: what its last layer has."""
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
    return linear[-1].out_features
