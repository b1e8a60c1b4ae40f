"""From a sound file to the waveform a model hears, or a short reason why not."""

from __future__ import annotations

import functools
import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from pydantic import Field

from hibprune.data.utterances import Audio, AudioFile, ContentFault, DatasetRow, EncodedAudio
from hibprune.records.base import Record

SILENCE_PEAK = 1e-6
HIGHEST_SAMPLING_RATE = 1_000_000

# Programs that write to a pipe cannot go back to fill in the length and leave a placeholder.
SMALLEST_PLACEHOLDER_LENGTH = 0x7FFFF000

# libsndfile counts a FLAC stream without a length as the largest signed 64-bit number of frames.
UNKNOWN_FRAMES = 2**62


class DurationLimits(Record):
    """The clips that are accepted, in seconds."""

    min_seconds: float = Field(default=0.1, ge=0)
    max_seconds: float = Field(default=40.0, gt=0)

    def within(self, shortest: float, longest: float) -> DurationLimits:
        """These limits, or narrower ones where a model takes no others."""
        return self.model_copy(
            update={
                "min_seconds": max(self.min_seconds, shortest),
                "max_seconds": min(self.max_seconds, longest),
            }
        )


def read_waveform(audio: Audio, sampling_rate: int, limits: DurationLimits) -> np.ndarray:
    """The clip as mono float32 at `sampling_rate` (Hz), its channels averaged.

    Raises ContentFault. The length is judged from the header, before anything is decoded.
    """
    clip = encoded(audio)
    try:
        with soundfile.SoundFile(_openable(clip)) as sound:
            start, count = _frames_wanted(clip, sound, limits)
            sound.seek(start)
            channels = _decoded(sound, count)
            rate = int(sound.samplerate)
    except soundfile.LibsndfileError as error:
        raise ContentFault("not audio that libsndfile can open") from error
    if not np.isfinite(channels).all():
        raise ContentFault("holds NaN or infinite values")
    waveform = channels.mean(axis=1)
    if np.abs(waveform).max() < SILENCE_PEAK:
        raise ContentFault("silent")
    return _resampled(waveform, rate, sampling_rate)


def encoded(audio: Audio) -> AudioFile | EncodedAudio:
    """The clip as a file or as bytes in memory. Raises ContentFault when a row holds none."""
    if not isinstance(audio, DatasetRow):
        return audio
    row = audio.rows[audio.index][audio.column]
    if row is None or (row["bytes"] is None and not row["path"]):
        raise ContentFault("missing")
    if row["bytes"] is not None:
        return EncodedAudio(row["bytes"])
    return AudioFile(Path(row["path"]))


def _openable(clip: AudioFile | EncodedAudio) -> str | io.BytesIO:
    """What soundfile opens, after the faults it would report as a mere failure to open."""
    if isinstance(clip, EncodedAudio):
        if not clip.data:
            raise ContentFault("empty")
        return io.BytesIO(clip.data)
    try:
        with clip.path.open("rb") as stream:
            if not stream.read(1):
                raise ContentFault("empty")
    except OSError as error:
        raise ContentFault(open_fault(error)) from error
    return str(clip.path)


def _frames_wanted(
    clip: AudioFile | EncodedAudio, sound: Any, limits: DurationLimits
) -> tuple[int, int]:
    """First frame and number of frames to decode."""
    rate, frames = int(sound.samplerate), int(sound.frames)
    if not 0 < rate <= HIGHEST_SAMPLING_RATE:
        raise ContentFault(f"a sampling rate of {rate} Hz")
    if frames >= UNKNOWN_FRAMES:
        raise ContentFault("its header does not say how long it is")
    _refuse_cut_data(sound.extra_info)
    if frames == 0:
        raise ContentFault("empty")
    start = 0
    if isinstance(clip, AudioFile):
        start = round(clip.start_seconds * rate)
        available = max(frames - start, 0)
        frames = available if clip.seconds is None else round(clip.seconds * rate)
        if frames > available or available == 0:
            raise ContentFault(f"ends before the segment at {clip.start_seconds:g} s does")
    seconds = frames / rate
    if seconds < limits.min_seconds:
        raise ContentFault(f"shorter than {limits.min_seconds:g} s ({seconds:.3f} s)")
    if seconds > limits.max_seconds:
        raise ContentFault(f"longer than {limits.max_seconds:g} s ({seconds:.1f} s)")
    return start, frames


def _refuse_cut_data(log: str) -> None:
    """Raise ContentFault when libsndfile found less data in a WAV or AIFF than its header promises.

    It then lowers the number of frames without an error; only its log tells.
    """
    found = re.search(r"^\s*(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found is None:
        return
    promised, present = int(found[1]), int(found[2])
    if present < promised < SMALLEST_PLACEHOLDER_LENGTH:
        raise ContentFault(f"truncated ({present} of {promised} bytes of sound)")


def _decoded(sound: Any, frames: int) -> np.ndarray:
    try:
        channels = sound.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ContentFault("truncated or damaged") from error
    if len(channels) < frames:
        raise ContentFault(f"truncated ({len(channels)} of {frames} frames)")
    return np.asarray(channels)


def _resampled(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return np.ascontiguousarray(waveform)
    import torch

    with torch.inference_mode():
        resampled = _resampler(rate, wanted)(torch.from_numpy(waveform))
    return np.ascontiguousarray(resampled.numpy())


@functools.lru_cache(maxsize=8)
def _resampler(rate: int, wanted: int) -> Any:
    """torchaudio's filter from `rate` to `wanted` (Hz), kept: it costs more than its use."""
    from torchaudio.transforms import Resample

    # The filter grows with the reduced ratio: gigabytes for 44,101 Hz. A ratio of at most
    # 1,000 is off by less than a millionth and exact for the usual rates.
    ratio = Fraction(wanted, rate).limit_denominator(1000)
    return Resample(ratio.denominator, ratio.numerator)


def open_fault(error: OSError) -> str:
    """Why a file cannot be opened, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    return (error.strerror or "cannot be opened").lower()
