"""Frames of an MP3, counted: what it promises, what it holds, and a length where it gives none.

Layer III of MPEG 1, 2 and 2.5. The header of all frames ("Xing", "Info", "VBRI") is the one that
LAME and Fraunhofer write into a first frame without sound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BITRATES = {
    1: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""In kbit/s by the four bits of a header, for MPEG 1, and for 2 and 2.5."""
SAMPLING_RATES = (44_100, 48_000, 32_000)
"""Of MPEG 1, in Hz; of 2 the half and of 2.5 a quarter."""
VBRI_OFFSET = 36
LONGEST_JUNK = 2**16
"""Bytes between two frames that a decoder searches for the second."""


@dataclass(frozen=True)
class Mp3:
    """What the frames of an MP3 amount to.

    `frames` are whole ones with sound; `promised` is what the header of all says, if there is
    one; `is_cut` when the last frame lacks its end.
    """

    start: int
    frames: int
    promised: int | None
    is_cut: bool

    @property
    def is_truncated(self) -> bool:
        """Whether frames are missing; some encoders count the frame without sound, too."""
        if self.promised is None:
            return self.is_cut
        return self.frames + 1 < self.promised


@dataclass(frozen=True)
class _Frame:
    """What the four bytes before each frame say."""

    version: int
    bytes: int
    side_bytes: int

    @property
    def all_frames_header(self) -> int:
        """Where "Xing" or "Info" stands, from the frame's start."""
        return 4 + self.side_bytes


def read_mp3(data: bytes) -> Mp3 | None:
    """The frames of an MP3, or None for anything else."""
    start = _after_id3(data)
    first = _frame_at(data, start)
    if first is None or _frame_at(data, start + first.bytes, at_end=True) is None:
        return None
    promised = _promised(data, start, first)
    place = start if promised is None else start + first.bytes
    frames, is_cut = 0, False
    while place < len(data):
        frame = _frame_at(data, place)
        if frame is None:
            found = _next_frame(data, place)
            if found is None:
                break
            place = found
            continue
        place += frame.bytes
        is_cut = place > len(data)
        frames += not is_cut
    return Mp3(start, frames, promised, is_cut)


def with_length(data: bytes, mp3: Mp3) -> bytes:
    """The same MP3 behind a first frame that says how many there are.

    Decoders else guess the number from the size and the first frame's bitrate, which is wrong
    where the bitrate changes.
    """
    header = bytearray(data[mp3.start : mp3.start + 4])
    header[1] |= 1  # No checksum follows.
    header[2] = 0x80 | header[2] & 0x0C  # A bitrate whose frame has room, and no padding.
    frame = _frame_at(bytes(header), 0)
    if frame is None:
        raise ValueError("no header of a frame where the MP3 starts")
    content = bytes(header) + bytes(frame.side_bytes) + b"Xing\0\0\0\1"
    content += mp3.frames.to_bytes(4, "big")
    return content.ljust(frame.bytes, b"\0") + data[mp3.start :]


def _after_id3(data: bytes) -> int:
    """Where an ID3v2 tag ends, whose length is written in seven bits a byte."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    length = 0
    for byte in data[6:10]:
        length = length << 7 | byte & 0x7F
    return 10 + length


def _frame_at(data: bytes, place: int, at_end: bool = False) -> _Frame | None:
    """The frame that starts at a byte, if one does; `at_end` also takes the end of the data."""
    header = data[place : place + 4]
    if at_end and not header:
        return _Frame(1, 0, 0)
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version = {0: 4, 2: 2, 3: 1}.get(header[1] >> 3 & 3)
    rate, bitrate = header[2] >> 2 & 3, header[2] >> 4
    if version is None or rate == 3 or bitrate in (0, 15):
        return None
    kilobits = BITRATES[min(version, 2)][bitrate]
    samples = 1152 if version == 1 else 576
    length = samples * 125 * kilobits * version // SAMPLING_RATES[rate] + (header[2] >> 1 & 1)
    is_mono = header[3] >> 6 == 3
    side = (17, 32) if version == 1 else (9, 17)
    return _Frame(version, length, side[0] if is_mono else side[1])


def _promised(data: bytes, start: int, first: _Frame) -> int | None:
    """The number of frames that the header of all gives; None where it or the number is absent."""
    place = start + first.all_frames_header
    if data[place : place + 4] in (b"Xing", b"Info") and data[place + 7] & 1:
        return int.from_bytes(data[place + 8 : place + 12], "big")
    place = start + VBRI_OFFSET
    if data[place : place + 4] == b"VBRI":
        return int.from_bytes(data[place + 14 : place + 18], "big")
    return None


def _next_frame(data: bytes, place: int) -> int | None:
    """The first of two frames in a row after bytes that are no frame; None where there are none."""
    for sync in re.finditer(rb"\xff[\xe2-\xff]", data[place : place + LONGEST_JUNK]):
        found = place + sync.start()
        frame = _frame_at(data, found)
        if frame is not None and _frame_at(data, found + frame.bytes) is not None:
            return found
    return None
