"""Signs that the end of a sound file is missing, which libsndfile passes over without an error."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

PROMISES = {
    "WAV": "data",
    "WAVEX": "data",
    "AIFF": "SSND",
    "AU": "Data Size",
    "SVX": "BODY",
    "RF64": "Riff size",
    "W64": "riff",
}
"""The line of libsndfile's log with the bytes that a file's header promises, by its format.

Of RF64 and W64 it is that of the whole file, the only one that says how many there are.
"""

# Programs that write to a pipe cannot go back to fill in the length and leave a placeholder.
SMALLEST_PLACEHOLDER = 0x7FFFF000
SMALLEST_LONG_PLACEHOLDER = 2**62
LONG = ("RF64", "W64")
"""Formats that count bytes in 64 bits."""

OGG_LAST_BYTES = 2**17
"""The largest page of an Ogg file has 65,307 bytes."""
OGG_HEADER_BYTES = 27
NIST_HEADER_BYTES = 1024
"""Of the files of TIMIT and other corpora of NIST."""

FORMATS = frozenset({*PROMISES, "CAF", "FLAC", "HTK", "IRCAM", "MP3", "NIST", "OGG", "VOC"})
"""Formats of recordings; libsndfile also opens those of synthesizers and of matrices.

CAF and HTK are not opened when cut, FLAC and MP3 show it when decoded, IRCAM promises nothing.
"""


Stream = io.BytesIO | io.RawIOBase
"""A sound file in memory or on disk, without a buffer: libsndfile reads from where it stands."""


@dataclass(frozen=True)
class Outline:
    """What the bytes at either end of a sound file say, which libsndfile does not tell."""

    samples: int | None = None
    lacks_end: bool = False


def outline(stream: Stream) -> Outline:
    """What there is to know of a sound file before libsndfile opens it."""
    stream.seek(0)
    start = stream.read(NIST_HEADER_BYTES) or b""
    if start.startswith(b"NIST"):
        found = re.search(rb"^sample_count -i (\d{1,18})\s*$", start, re.MULTILINE)
        return Outline(samples=int(found[1]) if found else None)
    return Outline(lacks_end=start.startswith(b"OggS") and _ends_within_page(stream))


def truncation(sound: Any, known: Outline) -> str | None:
    """What is missing of an open `soundfile.SoundFile` by its own word, or None."""
    container, log, frames = sound.format, sound.extra_info, int(sound.frames)
    if container in PROMISES:
        return _missing_bytes(PROMISES[container], log, container in LONG)
    if known.lacks_end or "Last page lacks an end-of-stream bit" in log:
        return "truncated (its last page is missing)"
    if container == "VOC" and "Seems to be a truncated file" in log:
        return "truncated"
    if known.samples is not None and frames < known.samples:
        return f"truncated ({frames} of {known.samples} frames)"
    return None


def _missing_bytes(label: str, log: str, is_long: bool) -> str | None:
    """What the log says of a file with less in it than its header promises.

    libsndfile then lowers the number of frames without an error.
    """
    found = re.search(rf"^\s*{label}\s*:\s*(\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if found is None:
        return None
    promised, present = int(found[1]), int(found[2])
    bound = SMALLEST_LONG_PLACEHOLDER if is_long else SMALLEST_PLACEHOLDER
    if not present < promised < bound:
        return None
    return f"truncated ({present} of {promised} bytes of sound)"


def _ends_within_page(stream: Stream) -> bool:
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(size - OGG_LAST_BYTES, 0))
    last = stream.read(OGG_LAST_BYTES) or b""
    page = last[max(last.rfind(b"OggS\0"), 0) :]
    if len(page) < OGG_HEADER_BYTES:
        return True
    # The header's last byte is the number of segments, whose lengths follow.
    lengths = page[OGG_HEADER_BYTES : OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1]]
    return len(page) < OGG_HEADER_BYTES + len(lengths) + sum(lengths)
