"""A feature extractor asked what it hears: by its settings, and by trying it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from hibprune.errors import UserError
from hibprune.models.parts import plain_faults
from hibprune.models.staging import StagedCheckpoint

LOWEST_RATE, HIGHEST_RATE = 1_000, 192_000
LARGEST_SETTING = 1_000_000
"""Of a window, a spectrum or a number of frames."""
SWITCHES = ("do_normalize", "return_attention_mask")
FOLLOWS = ("n_samples", "nb_max_frames")
"""Settings that a feature extractor computes of others, whatever its file says."""
MOST_SAMPLES = 30_000_000
"""Of a window that every clip is padded to: half an hour at 16 kHz."""
TRIED_SECONDS = (1.0, 10.0, 60.0, 300.0)
MOST_TRIED = 5_000_000
"""Samples, at high rates."""
CUT_NOTHING = (Wav2Vec2FeatureExtractor,)
"""Never shorten a clip, so that the shortest one tells whether they work; five minutes of noise
would take longer than all else in loading a small model."""
MOST_DRAWN = 100_003
"""Samples of noise, over and over in a longer clip."""
END = 0.1
"""Seconds at the end of a clip of which some must be heard; frames leave out less."""


def require_sane_settings(settings: Mapping[str, object], staged: StagedCheckpoint) -> None:
    """See that the settings in a feature extractor's file are numbers that memory is equal to.

    Raises:
        UserError: names the setting that is not.
    """
    place = f"{staged.source}: preprocessor_config.json"
    rate = settings.get("sampling_rate", LOWEST_RATE)
    if not _is_rate(rate):
        raise UserError(
            f"{place}: sampling_rate: should be a whole number of Hz from {LOWEST_RATE} to "
            f"{HIGHEST_RATE}, not {str(rate)[:40]}: set that of the sound the model was trained on"
        )
    for key in SWITCHES:
        if settings.get(key) is not None and not isinstance(settings[key], bool):
            said = str(settings[key])[:40]
            raise UserError(f"{place}: {key}: should be true or false, not {said}: mend it")
    numbers = {key: value for key, value in settings.items() if isinstance(value, int | float)}
    for key, value in numbers.items():
        if key not in FOLLOWS and not abs(value) <= LARGEST_SETTING:
            raise UserError(f"{place}: {key}: {str(value)[:40]} is out of all proportion: mend it")
    window = numbers.get("chunk_length", 0)
    if window * numbers.get("sampling_rate", 0) > MOST_SAMPLES:
        raise UserError(f"{place}: chunk_length: {window:g} s are more than a model takes: mend it")


def _is_rate(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and LOWEST_RATE <= value <= HIGHEST_RATE
        and value == int(value)
    )


def features_of(extractor: Any, waveforms: np.ndarray) -> tuple[str, Tensor]:
    """The main input's name, and what the extractor makes of clips (batch, samples)."""
    features = extractor(
        list(np.atleast_2d(waveforms)),
        sampling_rate=int(extractor.sampling_rate),
        return_tensors="pt",
    )
    name = extractor.model_input_names[0]
    return name, features[name]


def longest_heard(extractor: Any, staged: StagedCheckpoint) -> float:
    """Seconds of the longest clip that an extractor hears whole; infinity where none is cut.

    Found by changing the end of clips of several lengths: what is cut off changes nothing.

    Raises:
        UserError: the extractor fails, hears nothing, or makes something else of one clip at every
            time.
    """
    rate = int(extractor.sampling_rate)
    named = f"{staged.source}: its feature extractor ({type(extractor).__name__})"
    remedy = "take preprocessor_config.json from the same checkpoint"
    tried = TRIED_SECONDS[:1] if type(extractor) in CUT_NOTHING else TRIED_SECONDS
    with plain_faults(f"{named} fails", staged, f": {remedy}"):
        for seconds in tried:
            samples = min(round(seconds * rate), MOST_TRIED)
            unheard = _listening(extractor, samples)
            if not unheard(samples):
                raise UserError(
                    f"{named} makes something else of one clip at every time: set dither to 0 and "
                    "no random truncation in preprocessor_config.json"
                )
            if not unheard(samples - math.ceil(END * rate)):
                continue
            if unheard(0):
                raise UserError(f"{named} hears nothing: {remedy}")
            # Where it says so itself, two clips do for what else takes some twenty.
            said = int(getattr(extractor, "n_samples", None) or 0)
            if 0 < said < samples and unheard(said) and not unheard(said - 1):
                return said / rate
            nearly = _first_unheard(unheard, 0, samples, rate)
            shorter = _listening(extractor, min(samples, nearly + rate))
            return _first_unheard(shorter, max(0, nearly - rate), nearly, 1) / rate
    return math.inf


def _listening(extractor: Any, samples: int) -> Callable[[int], bool]:
    """Whether all that follows a sample of a clip of some length has no part in its features."""
    drawn = np.random.default_rng(0).random((2, min(samples, MOST_DRAWN)), np.float32)
    clip, other = (np.resize(noise - np.float32(0.5), samples) for noise in drawn)
    expected = features_of(extractor, clip)[1]

    def unheard(start: int) -> bool:
        changed = np.concatenate([clip[:start], other[start:]])
        return torch.equal(features_of(extractor, changed)[1], expected)

    return unheard


def _first_unheard(unheard: Callable[[int], bool], heard: int, cut: int, within: int) -> int:
    """A sample from which on nothing is heard, at most `within` behind the first of them."""
    while cut - heard > within:
        middle = (heard + cut) // 2
        heard, cut = (heard, middle) if unheard(middle) else (middle, cut)
    return cut
