"""Waveforms against closed forms, and every reason for which a clip is refused."""

from __future__ import annotations

import hashlib
import io
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from data_standins import tone, write_clip

from hibprune.data import (
    AudioFile,
    ContentFault,
    DurationLimits,
    EncodedAudio,
    content_digest,
    probe_seconds,
    read_waveform,
)

LIMITS = DurationLimits()


def peak_hertz(waveform: np.ndarray, sampling_rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * sampling_rate / len(waveform))


def encoded(waveform: np.ndarray, sampling_rate: int = 16_000, format: str = "WAV") -> bytes:
    stream = io.BytesIO()
    subtype = "FLOAT" if format == "WAV" else None
    soundfile.write(stream, waveform, sampling_rate, format=format, subtype=subtype)
    return stream.getvalue()


@pytest.mark.parametrize("recorded_at", [8_000, 11_025, 22_255, 44_100, 44_101, 48_000])
def test_resampling_keeps_the_pitch_and_the_length(recorded_at: int) -> None:
    audio = EncodedAudio(encoded(tone(1000, 1.0, recorded_at), recorded_at))
    waveform = read_waveform(audio, 16_000, LIMITS)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 16_000) <= 1
    assert peak_hertz(waveform, 16_000) == pytest.approx(1000, abs=2)
    middle = waveform[2000:-2000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_tones_above_half_the_new_rate_are_removed_not_folded() -> None:
    mixed = tone(1000, 1.0, 48_000) + tone(15_000, 1.0, 48_000)
    waveform = read_waveform(EncodedAudio(encoded(mixed, 48_000)), 16_000, LIMITS)
    spectrum = np.abs(np.fft.rfft(waveform))
    assert spectrum[990:1011].max() > 100 * spectrum[1100:].max()


def test_channels_are_averaged() -> None:
    channels = np.stack([np.full(8000, 0.5), np.full(8000, -0.1), np.full(8000, 0.2)], axis=1)
    waveform = read_waveform(EncodedAudio(encoded(channels)), 16_000, LIMITS)
    assert waveform == pytest.approx(np.full(8000, 0.2), abs=1e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
def test_reads_the_common_formats(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"tone{suffix}", 500)
    waveform = read_waveform(AudioFile(path), 16_000, LIMITS)
    assert peak_hertz(waveform[:8000], 16_000) == pytest.approx(500, abs=3)


def test_a_segment_is_cut_where_it_says(tmp_path: Path) -> None:
    path = tmp_path / "two_tones.wav"
    soundfile.write(path, np.concatenate([tone(300, 1.0), tone(2000, 1.0)]), 16_000)
    waveform = read_waveform(AudioFile(path, 1.25, 0.5), 16_000, LIMITS)
    assert len(waveform) == 8000
    assert peak_hertz(waveform, 16_000) == pytest.approx(2000, abs=3)


def reason(audio: AudioFile | EncodedAudio, limits: DurationLimits = LIMITS) -> str:
    with pytest.raises(ContentFault) as fault:
        read_waveform(audio, 16_000, limits)
    return fault.value.reason


def test_missing_file(tmp_path: Path) -> None:
    assert reason(AudioFile(tmp_path / "gone.wav")) == "missing"


def test_directory(tmp_path: Path) -> None:
    assert reason(AudioFile(tmp_path)) == "is a directory"


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert reason(AudioFile(tmp_path / "empty.wav")) == "empty"
    assert reason(EncodedAudio(b"")) == "empty"


def test_no_frames() -> None:
    assert reason(EncodedAudio(encoded(np.zeros(0)))) == "empty"


def test_not_audio(tmp_path: Path) -> None:
    (tmp_path / "page.wav").write_text("<html>not found</html>")
    assert reason(AudioFile(tmp_path / "page.wav")) == "not audio that libsndfile can open"


def test_truncated_wav() -> None:
    data = encoded(tone(440, 1.0))
    assert reason(EncodedAudio(data[: len(data) // 2])).startswith("truncated (")


def test_truncated_flac() -> None:
    data = encoded(tone(440, 1.0), format="FLAC")
    assert reason(EncodedAudio(data[: len(data) // 2])) == "truncated or damaged"


def test_truncated_mp3(tmp_path: Path) -> None:
    data = encoded(tone(440, 1.0), format="MP3")
    (tmp_path / "cut.mp3").write_bytes(data[: len(data) // 2])
    assert reason(AudioFile(tmp_path / "cut.mp3")).startswith("truncated (")


CONTAINERS = (
    ("WAV", "PCM_16"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("W64", "PCM_16"),
    ("RF64", "PCM_16"),
    ("AU", "FLOAT"),
    ("AIFF", "PCM_16"),
    ("SVX", "PCM_16"),
    ("VOC", "PCM_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Four seconds that no encoder makes small, so that an Ogg file has several pages."""
    return np.random.default_rng(0).normal(0, 0.1, 64_000).astype(np.float32)


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
@pytest.mark.parametrize("kept", [0.5, 0.8, 0.97])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_file_without_its_end_is_never_a_shorter_clip(
    tmp_path: Path, noise: np.ndarray, container: str, subtype: str, kept: float, in_memory: bool
) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, noise, 16_000, format=container, subtype=subtype)
    whole = stream.getvalue()
    for data, is_whole in ((whole, True), (whole[: int(kept * len(whole))], False)):
        (tmp_path / "clip").write_bytes(data)
        audio = EncodedAudio(data) if in_memory else AudioFile(tmp_path / "clip")
        if is_whole:
            assert len(read_waveform(audio, 16_000, LIMITS)) == pytest.approx(64_000, abs=1200)
            assert probe_seconds(audio, LIMITS) == pytest.approx(4, abs=0.08)
            continue
        assert reason(audio).startswith("truncated")
        with pytest.raises(ContentFault, match=r"^truncated"):
            probe_seconds(audio, LIMITS)


def test_an_ogg_file_cut_between_pages(noise: np.ndarray) -> None:
    for subtype in ("VORBIS", "OPUS"):
        stream = io.BytesIO()
        soundfile.write(stream, noise, 16_000, format="OGG", subtype=subtype)
        data = stream.getvalue()
        assert reason(EncodedAudio(data[: data.rindex(b"OggS")])) == (
            "truncated (its last page is missing)"
        )


def test_a_cut_caf_is_not_opened(noise: np.ndarray) -> None:
    data = encoded(noise, format="CAF")
    assert reason(EncodedAudio(data[: len(data) // 2])) == "not audio that libsndfile can open"


@pytest.mark.parametrize(("container", "place"), [("W64", 16), ("RF64", 20), ("AU", 8)])
def test_a_length_never_filled_in_is_no_truncation(container: str, place: int) -> None:
    data = bytearray(encoded(tone(440, 1.0), format=container))
    data[place : place + (4 if container == "AU" else 8)] = b"\xff" * (
        4 if container == "AU" else 8
    )
    assert len(read_waveform(EncodedAudio(bytes(data)), 16_000, LIMITS)) == 16_000


def test_telephone_sound_that_cannot_be_sought_in() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, tone(440, 1.0), 16_000, format="WAV", subtype="GSM610")
    waveform = read_waveform(EncodedAudio(stream.getvalue()), 16_000, LIMITS)
    assert peak_hertz(waveform, 16_000) == pytest.approx(440, abs=3)


def test_formats_of_synthesizers_and_matrices_are_refused() -> None:
    assert reason(EncodedAudio(encoded(tone(440), format="MAT5"))) == (
        "a format that is not for recordings (MAT5): convert it"
    )


def with_wav_header(channels: int = 1, rate: int = 16_000) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, tone(440, 1.0), 16_000, format="WAV", subtype="PCM_16")
    data = bytearray(stream.getvalue())
    data[22:24] = channels.to_bytes(2, "little")
    data[24:28] = rate.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("rate", [400, 999, 1_000_001, 48_000_000, 2**31 - 1])
def test_rates_that_no_recording_has(rate: int) -> None:
    assert reason(EncodedAudio(with_wav_header(rate=rate))) == f"a sampling rate of {rate} Hz"


@pytest.mark.parametrize("header", [{"channels": 0}, {"rate": 0}, {"channels": 65_535}])
def test_headers_that_say_nothing(header: dict[str, int]) -> None:
    assert reason(EncodedAudio(with_wav_header(**header))) == "not audio that libsndfile can open"


def test_many_channels_take_no_more_memory_than_a_few() -> None:
    stream = io.BytesIO()
    channels = np.tile(np.linspace(0, 0.5, 256, dtype=np.float32), (40_000, 1))
    soundfile.write(stream, channels, 16_000, format="WAV", subtype="PCM_16")
    audio = EncodedAudio(stream.getvalue())
    tracemalloc.start()
    waveform = read_waveform(audio, 16_000, LIMITS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000 * 256 * 4
    assert waveform == pytest.approx(np.full(40_000, 0.25), abs=1e-4)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("read", [read_waveform, probe_seconds, content_digest])
def test_no_clip_is_waited_for(tmp_path: Path, read: Callable[..., object]) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    arguments = {read_waveform: (16_000, LIMITS), probe_seconds: (LIMITS,)}.get(read, ())
    for name, fault in (
        ("pipe.wav", "a pipe, not a file"),
        ("zero.wav", "a device, not a file"),
        ("loop.wav", "too many levels of symbolic links"),
        ("a\0b.wav", "no file can have this name"),
        ("half \ud800.wav", "no file can have this name"),
        ("x" * 300 + ".wav", "file name too long"),
    ):
        with pytest.raises(ContentFault) as caught:
            read(AudioFile(tmp_path / name), *arguments)
        assert caught.value.reason == fault


def test_a_clip_with_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    audio = AudioFile(write_clip(tmp_path / "clip.wav", 500).rename(tmp_path / name))
    assert peak_hertz(read_waveform(audio, 16_000, LIMITS), 16_000) == pytest.approx(500, abs=3)
    assert probe_seconds(audio, LIMITS) == 0.5


def test_probing_decodes_at_most_a_frame(
    tmp_path: Path, noise: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = soundfile.SoundFile.read
    asked: list[int] = []

    def counting(sound: soundfile.SoundFile, frames: int, **options: object) -> object:
        asked.append(frames)
        return read(sound, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    for suffix in (".wav", ".flac", ".mp3", ".ogg"):
        soundfile.write(tmp_path / f"clip{suffix}", noise, 16_000)
        assert probe_seconds(AudioFile(tmp_path / f"clip{suffix}"), LIMITS) == pytest.approx(4)
    assert asked == [1, 1]
    for audio, fault in (
        (EncodedAudio(encoded(tone(440, 0.01))), "shorter than 0.1 s (0.010 s)"),
        (EncodedAudio(b"<html>"), "not audio that libsndfile can open"),
    ):
        with pytest.raises(ContentFault) as caught:
            probe_seconds(audio, LIMITS)
        assert caught.value.reason == fault


def test_wav_written_to_a_pipe_has_no_length_and_is_whole() -> None:
    stream = io.BytesIO()
    soundfile.write(stream, tone(440, 1.0), 16_000, format="WAV", subtype="PCM_16")
    data = bytearray(stream.getvalue())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert len(read_waveform(EncodedAudio(bytes(data)), 16_000, LIMITS)) == 16_000


def test_flac_without_length() -> None:
    data = bytearray(encoded(tone(440, 1.0), format="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert reason(EncodedAudio(bytes(data))) == "its header does not say how long it is"


def test_silent() -> None:
    assert reason(EncodedAudio(encoded(np.zeros(8000)))) == "silent"
    assert reason(EncodedAudio(encoded(np.full(8000, 9e-7)))) == "silent"
    read_waveform(EncodedAudio(encoded(np.full(8000, 2e-6))), 16_000, LIMITS)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(value: float) -> None:
    waveform = tone(440)
    waveform[100] = value
    assert reason(EncodedAudio(encoded(waveform))) == "holds NaN or infinite values"


def test_values_that_no_sound_has() -> None:
    assert reason(EncodedAudio(encoded(np.full(8000, 3e38)))) == (
        "holds values up to 3e+38, and sound lies between -1 and 1"
    )
    # Integers that were taken for floating-point numbers are still sound.
    read_waveform(EncodedAudio(encoded(2**31 * tone(440))), 16_000, LIMITS)


def test_too_short() -> None:
    assert reason(EncodedAudio(encoded(tone(440, 0.01)))) == "shorter than 0.1 s (0.010 s)"


def test_too_long_is_known_from_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(np.ones(600 * 8000, dtype=np.float32), 8000)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded a clip that is too long")

    monkeypatch.setattr(soundfile.SoundFile, "read", refuse)
    assert reason(EncodedAudio(data)) == "longer than 40 s (600.0 s)"


def test_segment_past_the_end(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "short.wav", seconds=1.0)
    assert reason(AudioFile(path, 0.5, 1.0)) == "ends before the segment at 0.5 s does"
    assert reason(AudioFile(path, 3.0)) == "ends before the segment at 3 s does"


def test_the_limits_hold_for_the_segment(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.wav", seconds=3.0)
    limits = DurationLimits(max_seconds=2.0)
    assert len(read_waveform(AudioFile(path, 1.0, 1.0), 16_000, limits)) == 16_000
    assert reason(AudioFile(path), limits) == "longer than 2 s (3.0 s)"


def test_digest_is_of_the_bytes_wherever_they_lie(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.wav")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert content_digest(AudioFile(path)) == expected
    assert content_digest(EncodedAudio(path.read_bytes())) == expected
    segments = {content_digest(AudioFile(path, start, 0.1)) for start in (0.0, 0.1)}
    assert len(segments | {expected}) == 3
