"""MP3s: frames against LAME's own count, and the whole sound where no length is given."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from data_standins import tone

from hibprune.data import ContentFault, DurationLimits, EncodedAudio, probe_seconds, read_waveform
from hibprune.data.mp3 import read_mp3

LIMITS = DurationLimits()
RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]


def noise(sampling_rate: int, channels: int = 1) -> np.ndarray:
    """Three seconds, quiet at first, so that the first frames have a bitrate of their own."""
    values = np.random.default_rng(0).normal(0, 0.1, (3 * sampling_rate, channels))
    values[:sampling_rate] *= 1e-3
    return values


def encoded(waveform: np.ndarray, sampling_rate: int, mode: str = "VARIABLE") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, waveform, sampling_rate, format="MP3", bitrate_mode=mode)
    return stream.getvalue()


def without_length(data: bytes) -> bytes:
    """The MP3 without its first frame, which holds no sound but LAME's count of the others.

    The second starts with the same bytes, but for those of the bitrate and the padding.
    """
    second = data.index(data[:2], 100)
    while data[second + 3] & 0xC0 != data[3] & 0xC0:
        second = data.index(data[:2], second + 1)
    return data[second:]


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", RATES)
def test_frames_are_as_many_as_lame_counted(rate: int, channels: int, mode: str) -> None:
    data = encoded(noise(rate, channels), rate, mode)
    counted = read_mp3(data)
    assert counted is not None
    assert counted.frames == counted.promised
    assert not counted.is_truncated
    # An ID3 tag before and one behind are no frames.
    tagged = b"ID3\4\0\0\0\0\2\1" + bytes(257) + data + b"TAG" + bytes(125)
    around = read_mp3(tagged)
    assert around is not None
    assert (around.frames, around.promised) == (counted.frames, counted.promised)
    cut = read_mp3(data[: len(data) // 2])
    assert cut is not None
    assert cut.is_truncated


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
def test_without_a_length_none_of_the_sound_is_lost(rate: int, mode: str) -> None:
    waveform = np.concatenate([1e-3 * tone(500, 1.5, rate), tone(500, 1.5, rate)])
    whole = encoded(waveform, rate, mode)
    bare = without_length(whole)
    counted = read_mp3(bare)
    assert counted is not None
    assert counted.promised is None
    expected = read_waveform(EncodedAudio(whole), rate, LIMITS)
    found = read_waveform(EncodedAudio(bare), rate, LIMITS)
    assert len(found) == pytest.approx(3 * rate, abs=3 * 1152)
    assert probe_seconds(EncodedAudio(bare), LIMITS) == pytest.approx(3, abs=0.15)
    # The end is as loud as it was, wherever the encoder's delay has moved it.
    for clip in (expected, found):
        assert np.abs(clip[-rate:-2304]).max() == pytest.approx(0.5, abs=0.1)


def test_an_mp3_without_a_length_that_ends_within_a_frame() -> None:
    bare = without_length(encoded(noise(16_000), 16_000))
    with pytest.raises(ContentFault, match=r"^truncated$"):
        read_waveform(EncodedAudio(bare[: len(bare) // 2 + 7]), 16_000, LIMITS)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG"])
def test_what_is_no_mp3(format: str) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, noise(16_000), 16_000, format=format)
    assert read_mp3(stream.getvalue()) is None
    assert read_mp3(b"") is None
    assert read_mp3(b"\xff\xfb") is None
