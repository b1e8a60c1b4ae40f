"""What tells the content of one utterance from that of another, whatever it is called."""

from __future__ import annotations

import hashlib

from hibprune.data.audio import encoded, open_fault, opened_bytes
from hibprune.data.text import read_text
from hibprune.data.utterances import AudioFile, Content, ContentFault, EncodedAudio, Text


def content_digest(content: Content) -> str:
    """SHA-256 of a text, or of a clip's encoded bytes and its segment. Raises ContentFault."""
    held = _held(content)
    if isinstance(held, bytes):
        return hashlib.sha256(held).hexdigest()
    with opened_bytes(held) as stream:
        digest = hashlib.file_digest(stream, "sha256")
    if held.start_seconds or held.seconds is not None:
        digest.update(f"@{held.start_seconds}+{held.seconds}".encode())
    return digest.hexdigest()


def content_size(content: Content) -> int:
    """Bytes of a text or an encoded clip. Raises ContentFault when the file is missing."""
    held = _held(content)
    if isinstance(held, bytes):
        return len(held)
    try:
        return held.path.stat().st_size
    except OSError as error:
        raise ContentFault(open_fault(error)) from error
    except ValueError as error:
        raise ContentFault("missing") from error


def _held(content: Content) -> bytes | AudioFile:
    """What is in memory, or the file it is in."""
    if isinstance(content, Text):
        return read_text(content).encode()
    clip = encoded(content)
    return clip.data if isinstance(clip, EncodedAudio) else clip
