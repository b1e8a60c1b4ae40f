"""Writing files so that a reader never sees half of one, and telling files by their content."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hibprune.errors import UserError


@contextmanager
def plain_disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and the like into one line that names the place.

    Raises:
        UserError: no space is left, the quota is used up, or `directory` cannot be written to.
    """
    try:
        yield
    except Exception as error:
        fault = _disk_fault(_error_number(error))
        if fault is None:
            raise
        raise UserError(f"{_place(error, directory)}: {fault}") from error


def _error_number(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors is written in Rust: its own error type, the number only in the text.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _disk_fault(number: int | None) -> str | None:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space and run again, finished steps are kept"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "no permission to write: choose another --output"
    if number in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO):
        return f"cannot be written: {os.strerror(number).lower()}: choose another --output"
    return None


def _place(error: Exception, directory: Path) -> str:
    filename = getattr(error, "filename", None)
    if isinstance(filename, str) and not Path(filename).is_relative_to(directory):
        return filename
    return str(directory)


def write_via_temporary(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it into place.

    The temporary keeps the suffix, since writers of pictures choose the format by it.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with plain_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_files_via_temporary(directory: Path, write: Callable[[Path], None]) -> list[str]:
    """Let `write` fill a temporary directory in `directory`, then rename its files into place.

    For writers that name their files themselves; returns the names.
    """
    with plain_disk_errors(directory), scratch_directory(directory) as scratch:
        write(scratch)
        files = sorted(path for path in scratch.iterdir() if path.is_file())
        for file in files:
            # safetensors writes files that only their owner may read.
            file.chmod(scratch.stat().st_mode & 0o666)
            file.replace(directory / file.name)
    return [file.name for file in files]


@contextmanager
def scratch_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory in `directory`, gone afterwards; on its disk, so that a move is safe.

    `remove_leftovers` also finds it after a kill, which the system's own place does not offer.
    """
    scratch = directory / f".scratch.{os.getpid()}.partial"
    try:
        scratch.mkdir(parents=True)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files and directories that killed writers left in a directory."""
    with plain_disk_errors(directory):
        leftovers = [path for path in directory.rglob(".*.partial*") if _is_temporary(path.name)]
        for path in leftovers:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _is_temporary(name: str) -> bool:
    return re.match(r"\.(.+\.)?\d+\.partial(\.|$)", name) is not None


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text under a temporary name and rename it."""
    write_via_temporary(path, lambda temporary: _write_utf8(temporary, text))


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str) -> str:
    """Hex sha256 of some strings, told apart by position."""
    content = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        content.update(len(encoded).to_bytes(8, "little"))
        content.update(encoded)
    return content.hexdigest()
