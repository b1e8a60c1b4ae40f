"""Data that are absent, damaged, mislabelled, or no data at all."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import soundfile
from battery import Case
from spoiling import both, content, cut, every_clip, no_file, recipe, row
from standin import SAMPLING_RATE, StandIn

NOISE = np.random.default_rng(0).standard_normal(SAMPLING_RATE) * 0.1
FIRST = "validation/0.wav"


def _clip(container: str, seed: int = 0) -> bytes:
    made = io.BytesIO()
    noise = np.roll(NOISE, seed)
    soundfile.write(made, noise, SAMPLING_RATE, format=container)
    return made.getvalue()


def _cut_everywhere(container: str, suffix: str) -> object:
    """All validation clips end in the middle of what their headers promise."""

    def spoil(stand_in: StandIn) -> None:
        data = _clip(container)
        rows = stand_in.rows("validation")
        for number, one in enumerate(rows):
            one["audio"] = f"validation/{number}{suffix}"
            (stand_in.root / one["audio"]).write_bytes(data[: len(data) // 2])
        stand_in.write_rows("validation", rows)

    return spoil


def _wave_header(**values: int) -> bytes:
    about = {"channels": 1, "rate": SAMPLING_RATE, "bits": 16, "size": 2**31 - 1, **values}
    width = min(about["channels"] * about["bits"] // 8, 65535)
    return (
        b"RIFF"
        + struct.pack("<I", min(about["size"] + 36, 2**32 - 1))
        + b"WAVEfmt "
        + struct.pack(
            "<IHHIIHH",
            16,
            1,
            about["channels"],
            about["rate"],
            min(about["rate"] * max(width, 1), 2**32 - 1),
            width,
            about["bits"],
        )
        + b"data"
        + struct.pack("<I", about["size"])
        + b"\0" * 2000
    )


MANIFESTS = {
    "empty": "",
    "only blank lines": "\n\n\n",
    "not JSON": "audio,label\n",
    "a list a line": "[1, 2]\n",
    "a number a line": "3\n",
    "not UTF-8": b'{"audio": "\xff", "label": "w0"}\n',
    "a line of ten megabytes": json.dumps({"audio": "x" * 10**7, "label": "w0"}),
    "nested deeply": '{"audio": ' + "[" * 100_000 + "\n",
    "a number of 5000 digits": '{"audio": "validation/0.wav", "label": ' + "9" * 5000 + "}\n",
    "NaN": '{"audio": NaN, "label": NaN}\n',
    "nulls": '{"audio": null, "label": null}\n',
    "a zero byte": '{"audio": "validation/\\u0000.wav", "label": "w0"}\n',
    "half of a surrogate": '{"audio": "validation/\\ud83d.wav", "label": "w0"}\n',
    "the same line twenty times": '{"audio": "validation/0.wav", "label": "w0"}\n' * 20,
    "control characters": '{"audio": "validation/\\u001b[2J.wav", "label": "w0"}\n',
    "an absolute path": '{"audio": "/etc/passwd", "label": "w0"}\n',
    "a path upwards": '{"audio": "../../../../../../etc/passwd", "label": "w0"}\n',
    "a device": '{"audio": "/dev/zero", "label": "w0"}\n',
    "a very long name": json.dumps({"audio": "x" * 5000 + ".wav", "label": "w0"}) + "\n",
}

ROWS = {
    "an unknown label": {"label": "nobody"},
    "a label of control characters": {"label": "\x1b[2J\x07"},
    "a label of a megabyte": {"label": "x" * 900_000},
    "a label that is a list": {"label": ["w0"]},
    "a label that is a number too large": {"label": 99},
    "a label that is negative": {"label": -1},
    "a label that is a fraction": {"label": 1.5},
    "no label": {"label": None},
    "no audio": {"audio": None},
    "audio that is a number": {"audio": 3},
    "audio that is a directory": {"audio": "validation"},
    "audio from calibration": {"audio": "calibration/0.wav"},
}

CLIPS = {
    "empty": b"",
    "text": b"this is no sound at all",
    "zeros": b"\0" * 10_000,
    "a header alone": _clip("WAV")[:44],
    "no channels": _wave_header(channels=0),
    "65535 channels": _wave_header(channels=65535),
    "a rate of 0": _wave_header(rate=0),
    "a rate of 4 GHz": _wave_header(rate=2**32 - 1),
    "0 bits": _wave_header(bits=0),
    "two gigabytes promised": _wave_header(),
}

SOUNDS = {
    "NaN": (np.full(SAMPLING_RATE, np.nan), {"subtype": "FLOAT"}),
    "infinite": (np.full(SAMPLING_RATE, np.inf), {"subtype": "FLOAT"}),
    "of one sample": (NOISE[:1], {}),
    "of ten samples": (NOISE[:10], {}),
    "without samples": (NOISE[:0], {}),
    "of 3e38": (np.full(SAMPLING_RATE, 3e38), {"subtype": "FLOAT"}),
}


def source(kind: str, **values: object) -> object:
    return recipe(validation__source={"kind": kind, **values})


SOURCES = {
    "a folder that is not there": source("folder", path="nowhere"),
    "a folder of nothing": both(lambda s: (s.root / "none").mkdir(), source("folder", path="none")),
    "a folder that is a file": source("folder", path="recipe.yaml"),
    "a manifest that is a directory": source("manifest", path="validation"),
    "a manifest that is sound": source("manifest", path="validation/0.wav"),
    "a manifest that is the recipe": source("manifest", path="recipe.yaml"),
    "a manifest in /etc": source("manifest", path="/etc/passwd"),
    "datasets: no such name": source("datasets", path="nobody/nothing", split="test"),
    "datasets: audiofolder over the working directory": source(
        "datasets", path="audiofolder", split="test"
    ),
    "datasets: parquet over the working directory": source(
        "datasets", path="parquet", split="test"
    ),
    "datasets: a file of noise": both(
        content("x.parquet", b"PAR1" + bytes(range(256))), source("datasets", path="x.parquet")
    ),
    "datasets: a script": both(
        content("x.py", "raise SystemExit\n"), source("datasets", path="x.py")
    ),
    "Speech Commands: nowhere": source("speechcommands", root="nowhere", subset="testing"),
    "LibriSpeech: nowhere": source("librispeech", root="nowhere", subset="test-clean"),
    "Fluent Speech Commands: nowhere": source("fluent", root="nowhere", subset="test"),
    "VoxCeleb1: nowhere": source("voxceleb1", root="nowhere", subset="test"),
}


def _link_loop(stand_in: StandIn) -> None:
    folder = stand_in.root / "folder"
    for number in range(3):
        (folder / f"w{number}").mkdir(parents=True)
        (folder / f"w{number}/{number}.wav").write_bytes(_clip("WAV", number))
    (folder / "w0/again").symlink_to(folder, target_is_directory=True)


def _strange_names(stand_in: StandIn) -> None:
    folder = stand_in.root / "folder"
    for number in range(3):
        place = folder / f"w{number}"
        place.mkdir(parents=True)
        for name in (b"\xff\xfe.wav", b"a\nb.wav", b"\x1b[2J.wav"):
            Path(os.fsdecode(bytes(place) + b"/" + name)).write_bytes(_clip("WAV"))


CASES: list[Case] = [
    *[
        Case(
            f"manifest: {what}",
            content("validation.jsonl", text),
            must_refuse=what != "the same line twenty times",
        )
        for what, text in MANIFESTS.items()
    ],
    *[
        Case(
            f"calibration manifest: {what}",
            content("calibration.jsonl", text),
            must_refuse=what != "the same line twenty times",
        )
        for what, text in MANIFESTS.items()
    ],
    *[
        Case(f"manifest: {kind} in its place", no_file("validation.jsonl", kind))
        for kind in ("pipe", "zeros", "directory", "loop", "nowhere")
    ],
    *[Case(f"row: {what}", row("validation", **values)) for what, values in ROWS.items()],
    *[Case(f"clip: {what}", content(FIRST, data)) for what, data in CLIPS.items()],
    *[
        Case(f"clip: {kind} in its place", no_file(FIRST, kind))
        for kind in ("pipe", "zeros", "directory", "loop", "nowhere")
    ],
    *[
        Case(f"clips: {what}", every_clip(sound, **options), must_refuse=what != "of 3e38")
        for what, (sound, options) in SOUNDS.items()
    ],
    *[
        Case(f"clips: cut {container}", _cut_everywhere(container, suffix), must_refuse=False)
        for container, suffix in (
            ("WAV", ".wav"),
            ("W64", ".w64"),
            ("RF64", ".wav"),
            ("AU", ".au"),
            ("FLAC", ".flac"),
            ("OGG", ".ogg"),
            ("AIFF", ".aiff"),
            ("CAF", ".caf"),
            ("MP3", ".mp3"),
        )
    ],
    Case("clip: half of it", cut(FIRST, 0.5), must_refuse=False),
    *[Case(f"source: {what}", spoil) for what, spoil in SOURCES.items()],
    Case(
        "source: a folder that holds itself",
        both(_link_loop, source("folder", path="folder")),
        must_refuse=False,
    ),
    Case(
        "source: names that no text can hold",
        both(_strange_names, source("folder", path="folder")),
        must_refuse=False,
    ),
    *[
        Case(
            f"check: {what}",
            spoil,
            command=("check", "{root}/recipe.yaml", "--offline"),
            must_refuse=False,
        )
        for what, spoil in SOURCES.items()
    ],
    *[
        Case(
            f"speech_recognition: transcript {text!r}"[:60],
            row("validation", text=text),
            "speech_recognition",
            must_refuse=refuse,
        )
        for text, refuse in (
            ("", True),
            ("   ", True),
            (3, False),
            ("ÄÖÜ", True),
            ("\x00", True),
            ("A" * 900_000, False),
            ("<pad><s>", True),
            (None, True),
        )
    ],
    *[
        Case(
            f"text: {text!r}"[:50],
            row("validation", text=text),
            "text_classification",
            must_refuse=refuse,
        )
        for text, refuse in (
            ("", True),
            ("\ud83d", True),
            ("x " * 400_000, True),
            (3, False),
            (None, True),
        )
    ],
]
