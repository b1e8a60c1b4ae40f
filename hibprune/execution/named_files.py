"""Files that the user names, which may be links, pipes or devices and stay what they are."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from hibprune.execution.files import replace_via_temporary

STREAMS = (1, 2)
"""Standard output and standard error, which have names, too."""


def write_named(path: Path, text: str) -> None:
    """Write UTF-8 text as the whole of a file, where a link leads if it is one.

    No reader sees half of a regular file; a pipe or a device is written straight to.

    Raises:
        OSError: it cannot be written to.
    """
    content = text.encode()
    if _is_taken_as_it_is(path):
        _write_into(path, content, os.O_WRONLY)
        return
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_via_temporary(place, lambda temporary: _write_whole(temporary, content))


def append_named(path: Path, text: str) -> None:
    """Write UTF-8 text at the end of a file, where a link leads; one that is not there is made.

    Raises:
        OSError: it cannot be written to.
    """
    # A pipe or a device has no end, and none is made in its place.
    flags = os.O_WRONLY if _is_taken_as_it_is(path) else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    _write_into(path, text.encode(), flags)


def _is_taken_as_it_is(path: Path) -> bool:
    """Whether there is something, at the end of links, that is no regular file, or a stream."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or _stream(status) is not None


def _stream(status: os.stat_result) -> int | None:
    """The stream of this process that goes to a file: what it has said must not be lost."""
    for stream in STREAMS:
        with suppress(OSError):
            if os.path.samestat(os.fstat(stream), status):
                return stream
    return None


def _write_into(path: Path, content: bytes, flags: int) -> None:
    stream = None if flags & os.O_CREAT else _stream(path.stat())
    if stream is None:
        descriptor = os.open(path, flags | getattr(os, "O_NOCTTY", 0), 0o666)
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        descriptor = os.dup(stream)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _write_whole(path: Path, content: bytes) -> None:
    path.write_bytes(content)
