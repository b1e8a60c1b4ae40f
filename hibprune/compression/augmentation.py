"""Clips of sound varied for training: other speeds, and blots in the spectrogram (SpecAugment)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis, speed

from hibprune.compression.recover_settings import Augmentation

WINDOW_SECONDS = 0.025
TIME_AXIS, FREQUENCY_AXIS = 2, 1


def augmented(
    waveform: np.ndarray,
    sampling_rate: int,
    settings: Augmentation,
    draw: str,
    limits: tuple[float, float],
) -> np.ndarray:
    """A clip (samples,) as it sounds this time; `draw` names the time, and decides.

    A speed that would make it shorter or longer than `limits` (seconds) is left out.
    """
    number = int.from_bytes(hashlib.sha256(draw.encode()).digest()[:8], "little") >> 1
    sound = torch.from_numpy(np.array(waveform, dtype=np.float32))
    # torchaudio draws from torch's own generator.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        if settings.speed:
            factor = settings.speed[int(torch.randint(len(settings.speed), ()))]
            seconds = len(sound) / sampling_rate / factor
            if factor != 1 and limits[0] <= seconds <= limits[1]:
                sound = speed(sound, sampling_rate, factor)[0]
        if settings.time_masks or settings.frequency_masks:
            sound = _blotted(sound, sampling_rate, settings)
    return sound.numpy()


def _blotted(sound: Tensor, sampling_rate: int, settings: Augmentation) -> Tensor:
    size = min(round(WINDOW_SECONDS * sampling_rate), len(sound))
    window = torch.hann_window(size)
    spectrum = torch.stft(sound, size, size // 4 or 1, window=window, return_complex=True)
    kept = torch.ones(1, *spectrum.shape)
    for number, share, axis in (
        (settings.time_masks, settings.time_share, TIME_AXIS),
        (settings.frequency_masks, settings.frequency_share, FREQUENCY_AXIS),
    ):
        for _ in range(number):
            widest = int(share * kept.shape[axis])
            if widest:
                kept = mask_along_axis(kept, widest, 0.0, axis)
    return torch.istft(spectrum * kept[0], size, size // 4 or 1, window=window, length=len(sound))
