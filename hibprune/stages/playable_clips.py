"""Validation clips as sound files that a page can play."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import soundfile

from hibprune.data import ContentFault, DurationLimits
from hibprune.models.preprocessing import SoundPreprocessor
from hibprune.stages.load import Material

Playable = Callable[[str], bytes | None]
"""Takes the id of a clip, gives a sound file, or None where there is none."""


def playable_clips(material: Material, limits: DurationLimits) -> Playable:
    """The validation clips by id as WAV at the model's rate, which is what the model hears."""
    preprocessor = material.checkpoint.preprocessor
    contents = {one.id: one.content for one in material.validation.utterances}

    def wav(name: str) -> bytes | None:
        if not isinstance(preprocessor, SoundPreprocessor) or name not in contents:
            return None
        try:
            waveform = np.asarray(preprocessor.read(contents[name], limits))
        except ContentFault:
            return None
        file = io.BytesIO()
        # WAV of integers ends at 1.
        loudest = max(1.0, float(np.abs(waveform).max()))
        soundfile.write(
            file, waveform / loudest, preprocessor.sampling_rate, subtype="PCM_16", format="WAV"
        )
        return file.getvalue()

    return wav
