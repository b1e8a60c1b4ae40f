"""Corpora of a few clips in the layout of the real ones, and single clips, made of tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

SAMPLING_RATE = 16_000


def tone(hertz: float, seconds: float = 0.5, sampling_rate: int = SAMPLING_RATE) -> np.ndarray:
    """A sine of amplitude 0.5, float32."""
    times = np.arange(round(seconds * sampling_rate)) / sampling_rate
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def write_clip(
    path: Path, hertz: float = 440, seconds: float = 0.5, sampling_rate: int = SAMPLING_RATE
) -> Path:
    """A tone at `path`, in the format of its suffix; its directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(hertz, seconds, sampling_rate), sampling_rate)
    return path


def speech_commands(root: Path, version: str = "v0.01") -> Path:
    """Speech Commands: per split speakers of four words, and noise of 12 s and 12.10006 s.

    Speaker `aaaa…` is in training, `bbbb…` in validation, `cccc…` in testing.
    """
    top = root / "SpeechCommands" / f"speech_commands_{version}"
    names: list[str] = []
    for number, word in enumerate(("yes", "stop", "bed", "wow")):
        for speaker in ("aaaa0001", "aaaa0002", "bbbb0001", "cccc0001", "cccc0002"):
            name = f"{word}/{speaker}_nohash_0.wav"
            write_clip(top / name, 300 + 10 * number + len(names))
            names.append(name)
    for prefix, listing in (("b", "validation_list.txt"), ("c", "testing_list.txt")):
        listed = [name for name in names if name.split("/")[1].startswith(prefix)]
        (top / listing).write_text("\n".join(listed) + "\n")
    noise = np.random.default_rng(0)
    for name, frames in (("pink_noise", 192_000), ("running_tap", 193_601)):
        path = top / "_background_noise_" / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, noise.normal(0, 0.1, frames), SAMPLING_RATE)
    (top / "LICENSE").write_text("CC BY 4.0")
    return root


def librispeech(root: Path, subset: str = "test-clean") -> Path:
    """LibriSpeech: two chapters, one with two utterances, FLAC and `.trans.txt`."""
    transcripts = {
        "1089-134686-0000": "HE HOPED THERE WOULD BE STEW FOR DINNER",
        "1089-134686-0001": "STUFF IT INTO YOU HIS BELLY COUNSELLED HIM",
        "121-121726-0000": "ALSO A POPULAR CONTRIVANCE",
    }
    for number, (name, text) in enumerate(transcripts.items()):
        speaker, chapter, _ = name.split("-")
        directory = root / "LibriSpeech" / subset / speaker / chapter
        write_clip(directory / f"{name}.flac", 400 + number)
        with (directory / f"{speaker}-{chapter}.trans.txt").open("a") as stream:
            stream.write(f"{name} {text}\n")
    return root


def fluent_speech_commands(root: Path, subset: str = "test") -> Path:
    """Fluent Speech Commands: the published header, labels with a space and with capitals."""
    top = root / "fluent_speech_commands_dataset"
    rows = [
        ("4BrX8aDqK2cLZRYl", "Turn on the lights", "activate", "lights", "none"),
        ("4BrX8aDqK2cLZRYl", "Switch to Korean", "change language", "Korean", "none"),
        ("5o9BvRGEGvhaeBwA", '"Heat up, in the kitchen"', "increase", "heat", "kitchen"),
    ]
    lines = [",path,speakerId,transcription,action,object,location"]
    for number, (speaker, *columns) in enumerate(rows):
        path = f"wavs/speakers/{speaker}/{number:08d}-4478.wav"
        write_clip(top / path, 500 + number)
        lines.append(",".join((str(number), path, speaker, *columns)))
    (top / "data").mkdir()
    (top / "data" / f"{subset}_data.csv").write_text("\n".join(lines) + "\n")
    return root


def voxceleb1(root: Path) -> Path:
    """VoxCeleb1: two speakers with a clip in each of train (1), dev (2) and test (3)."""
    lines = []
    for number, speaker in enumerate(("id10001", "id11251")):
        for split, video in enumerate(("1zcIwhmdeo4", "7gWzIy6yIIk", "y8E_1ndLPDE"), start=1):
            name = f"{speaker}/{video}/00001.wav"
            write_clip(root / "wav" / name, 600 + 10 * number + split)
            lines.append(f"{split} {name}")
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n")
    return root
