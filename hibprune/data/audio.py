"""From a sound file to the waveform a model hears, or a short reason why not."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import soundfile
from pydantic import Field

from hibprune.data.mp3 import read_mp3, with_length
from hibprune.data.truncation import FORMATS, Stream, outline, truncation
from hibprune.data.utterances import Audio, AudioFile, ContentFault, DatasetRow, EncodedAudio
from hibprune.execution.files import open_bounded, read_fault
from hibprune.records.base import Record

SILENCE_PEAK = 1e-6
LOUDEST_PEAK = 2.0**32
"""More than any integers of 32 bits that were taken for floating-point numbers."""
SAMPLING_RATES = (1_000, 1_000_000)
"""The lowest and the highest, in Hz, that any recording of speech or of animals has."""

# libsndfile counts a FLAC stream without a length as the largest signed 64-bit number of frames.
UNKNOWN_FRAMES = 2**62

MAX_CLIP_BYTES = 2**33
MAX_MP3_BYTES = 2**30
"""Of MP3s, which are read into memory to count their frames."""
VALUES_AT_ONCE = 2**22
"""Decoded at a time, all channels together: there may be a thousand of them."""
SOUGHT_TO_THE_END = ("FLAC", "MP3")
"""Formats whose header does not change when their end is cut off."""


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


NO_LIMITS = DurationLimits(min_seconds=0.0, max_seconds=math.inf)
"""Where what is too short or too long is for the model alone to say."""


@dataclass(frozen=True)
class _Segment:
    """What is wanted of an open sound file."""

    sound: Any
    start: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / int(self.sound.samplerate)


def read_waveform(
    audio: Audio, sampling_rate: int, limits: DurationLimits, allow_silence: bool = False
) -> np.ndarray:
    """The clip as mono float32 at `sampling_rate` (Hz), its channels averaged.

    Raises ContentFault. The length is judged from the header, before anything is decoded.
    """
    with _opened(audio, limits) as segment:
        waveform = _decoded(segment)
        rate = int(segment.sound.samplerate)
    if not np.isfinite(waveform).all():
        raise ContentFault("holds NaN or infinite values")
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK and not allow_silence:
        raise ContentFault("silent")
    if peak > LOUDEST_PEAK:
        raise ContentFault(f"holds values up to {peak:.0e}, and sound lies between -1 and 1")
    return _resampled(waveform, rate, sampling_rate)


def probe_seconds(audio: Audio, limits: DurationLimits) -> float:
    """How long the clip is, told without decoding it.

    Raises ContentFault for all that `read_waveform` does but values: silence, NaN, and damage that
    leaves the end in place.
    """
    with _opened(audio, limits) as segment:
        if segment.sound.format in SOUGHT_TO_THE_END:
            last = _Segment(segment.sound, segment.start + segment.frames - 1, 1)
            _decoded(last)
        return segment.seconds


@contextmanager
def _opened(audio: Audio, limits: DurationLimits) -> Iterator[_Segment]:
    """The sound file of a clip and the part of it that is wanted. Raises ContentFault."""
    clip = encoded(audio)
    with opened_bytes(clip) as stream, _sound(_with_length(stream)) as (sound, frames):
        yield _wanted(clip, sound, frames, limits)


@contextmanager
def opened_bytes(clip: AudioFile | EncodedAudio) -> Iterator[Stream]:
    """The encoded clip as a stream. Raises ContentFault."""
    if isinstance(clip, EncodedAudio):
        yield io.BytesIO(clip.data)
        return
    try:
        stream = open_bounded(clip.path, MAX_CLIP_BYTES).detach()
    except OSError as error:
        raise ContentFault(open_fault(error)) from error
    with stream:
        yield stream


def _with_length(stream: Stream) -> Stream:
    """The same stream; of an MP3 without a length, one that has it. Raises ContentFault."""
    start = stream.read(4) or b""
    stream.seek(0)
    if start[:3] != b"ID3" and not (start[:1] == b"\xff" and start[1:2] >= b"\xe0"):
        return stream
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    data = (stream.read(size) or b"") if size <= MAX_MP3_BYTES else b""
    mp3 = read_mp3(data)
    if mp3 is None or (mp3.promised is not None and not mp3.is_truncated):
        return stream
    if mp3.is_truncated:
        number = "" if mp3.promised is None else f" ({mp3.frames} of {mp3.promised} frames)"
        raise ContentFault(f"truncated{number}")
    return io.BytesIO(with_length(data, mp3))


@contextmanager
def _sound(stream: Stream) -> Iterator[tuple[Any, int]]:
    """A stream as a `soundfile.SoundFile`, and the number of frames in it. Raises ContentFault.

    Files are handed over open: libsndfile would wait for a pipe, and does not take every name.
    """
    known = outline(stream)
    if not stream.seek(0, io.SEEK_END):
        raise ContentFault("empty")
    stream.seek(0)
    is_file = not isinstance(stream, io.BytesIO)
    try:
        file = stream.fileno() if is_file else stream
        with soundfile.SoundFile(file, closefd=not is_file) as sound:
            cut = truncation(sound, known)
            if cut is not None:
                raise ContentFault(cut)
            yield sound, _frames(sound)
    except soundfile.LibsndfileError as error:
        raise ContentFault("not audio that libsndfile can open") from error


def _frames(sound: Any) -> int:
    """How many frames there are, of a format and at a rate that can be. Raises ContentFault."""
    rate, frames = int(sound.samplerate), int(sound.frames)
    if sound.format not in FORMATS:
        raise ContentFault(f"a format that is not for recordings ({sound.format}): convert it")
    if not 0 < rate <= SAMPLING_RATES[1]:
        raise ContentFault(f"a sampling rate of {rate} Hz")
    if frames >= UNKNOWN_FRAMES:
        raise ContentFault("its header does not say how long it is")
    if frames == 0:
        raise ContentFault("empty")
    return frames


def encoded(audio: Audio) -> AudioFile | EncodedAudio:
    """The clip as a file or as bytes in memory. Raises ContentFault when a row holds none."""
    if not isinstance(audio, DatasetRow):
        return audio
    try:
        row = audio.rows[audio.index][audio.column]
    except Exception as error:  # Whatever Arrow raises over a table that is not what it seems.
        raise ContentFault("its row cannot be read") from error
    if row is None or (row["bytes"] is None and not row["path"]):
        raise ContentFault("missing")
    if row["bytes"] is not None:
        return EncodedAudio(row["bytes"])
    path = audio.files.located(row["path"])
    if path is None:
        raise ContentFault("its path leads out of the data set")
    return AudioFile(path)


def _wanted(
    clip: AudioFile | EncodedAudio, sound: Any, frames: int, limits: DurationLimits
) -> _Segment:
    start, rate = 0, int(sound.samplerate)
    if isinstance(clip, AudioFile):
        start = round(clip.start_seconds * rate)
        available = max(frames - start, 0)
        frames = available if clip.seconds is None else round(clip.seconds * rate)
        if frames > available or available == 0:
            raise ContentFault(f"ends before the segment at {clip.start_seconds:g} s does")
    segment = _Segment(sound, start, frames)
    if segment.seconds < limits.min_seconds:
        raise ContentFault(f"shorter than {limits.min_seconds:g} s ({segment.seconds:.3f} s)")
    if segment.seconds > limits.max_seconds:
        raise ContentFault(f"longer than {limits.max_seconds:g} s ({segment.seconds:.1f} s)")
    if rate < SAMPLING_RATES[0]:
        raise ContentFault(f"a sampling rate of {rate} Hz")
    return segment


def _decoded(segment: _Segment) -> np.ndarray:
    """The mean over channels, in float32. Raises ContentFault when there is less than promised."""
    sound, waveform = segment.sound, np.empty(segment.frames, dtype=np.float32)
    at_once = max(VALUES_AT_ONCE // int(sound.channels), 1)
    done = 0
    try:
        if segment.start:
            sound.seek(segment.start)
        while done < segment.frames:
            channels = sound.read(
                min(at_once, segment.frames - done), dtype="float32", always_2d=True
            )
            if not len(channels):
                break
            waveform[done : done + len(channels)] = channels.mean(axis=1)
            done += len(channels)
    except soundfile.LibsndfileError as error:
        raise ContentFault("truncated or damaged") from error
    if done < segment.frames:
        raise ContentFault(f"truncated ({done} of {segment.frames} frames)")
    return waveform


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
    """Why a clip cannot be opened, in a few words."""
    return "missing" if isinstance(error, FileNotFoundError) else read_fault(error)
