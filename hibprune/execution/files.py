"""Files written so that no reader sees half of one, read within bounds, and told by content."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hibprune.errors import OutputError, UserError

MAX_RECIPE_BYTES = 2**20
MAX_TEXT_BYTES = 2**28
"""Of a manifest, a record or a settings file; the largest that are known take a tenth."""
MAX_FILE_BYTES = 2**36
"""Of sound, weights and graphs, which are not read into memory whole."""

SPECIAL_FILES = (
    (stat.S_ISFIFO, "a pipe, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
    (stat.S_ISCHR, "a device, not a file"),
    (stat.S_ISBLK, "a device, not a file"),
)


IN_THE_WAY = (
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EIO, errno.EILSEQ,
)  # fmt: skip
"""What the system says of places that cannot be written to as they are."""
REMOVE_OR_CHOOSE = "remove it or choose another --output"


class UnfitFileError(OSError):
    """What is not opened: no regular file, larger than its reader takes, or behind a link.

    `strerror` says which, in a few words.
    """


def open_bounded(
    path: Path, max_bytes: int = MAX_FILE_BYTES, within: Path | None = None
) -> io.BufferedReader:
    """Open a regular file of at most `max_bytes` for reading; never waits for one to be written.

    Links are followed, except below the directory `within` where one is given.

    Raises:
        OSError: there is no such file, it may not be read, or it is not fit (UnfitFileError).
    """
    try:
        _refuse_links(path, within)
        # Asked before opening, which some devices answer with an action, and after, since another
        # file may be there by then.
        _require_fit(path.stat(), path, max_bytes)
        no_follow = 0 if within is None else getattr(os, "O_NOFOLLOW", 0)
        flags = os.O_RDONLY | no_follow | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except ValueError as error:
        # A null character, or half of a character that only memory can hold.
        raise UnfitFileError(errno.EINVAL, "no file can have this name", str(path)) from error
    try:
        _require_fit(os.fstat(descriptor), path, max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bounded(path: Path, max_bytes: int = MAX_TEXT_BYTES, within: Path | None = None) -> bytes:
    """The content of a regular file of at most `max_bytes`, as `open_bounded` opens it.

    Raises:
        OSError: as there; also for a file that holds more than its size says, as below /proc.
    """
    with open_bounded(path, max_bytes, within) as file:
        # Nothing at all where the system would have us wait, as for a pipe it calls a file.
        content = file.read(max_bytes + 1) or b""
    if len(content) > max_bytes:
        raise _too_large(path, max_bytes)
    return content


def read_text_bounded(
    path: Path, max_bytes: int = MAX_TEXT_BYTES, within: Path | None = None
) -> str:
    """The content of a file as `read_bounded` reads it, in UTF-8; every end of line is a newline.

    Raises:
        OSError: as there.
        UnicodeDecodeError: it is not UTF-8.
    """
    content = io.BytesIO(read_bounded(path, max_bytes, within))
    return io.TextIOWrapper(content, encoding="utf-8").read()


def read_fault(error: OSError) -> str:
    """Why a file cannot be read, in a few words."""
    reason = error.strerror or "cannot be opened"
    return reason if isinstance(error, UnfitFileError) else reason[:1].lower() + reason[1:]


def _refuse_links(path: Path, within: Path | None) -> None:
    if within is None:
        return
    if not path.is_relative_to(within) or ".." in path.relative_to(within).parts:
        raise UnfitFileError(errno.EINVAL, f"not inside {within}", str(path))
    below = len(path.relative_to(within).parts)
    if any(part.is_symlink() for part in (path, *path.parents)[:below]):
        raise UnfitFileError(errno.ELOOP, "behind a link, which is not followed", str(path))


def _require_fit(status: os.stat_result, path: Path, max_bytes: int) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_special, named in SPECIAL_FILES:
        if is_special(status.st_mode):
            raise UnfitFileError(errno.EINVAL, named, str(path))
    if status.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _too_large(path: Path, max_bytes: int) -> UnfitFileError:
    return UnfitFileError(errno.EFBIG, f"larger than {max_bytes / 1e6:,.0f} MB", str(path))


def require_own(directory: Path) -> None:
    """See that what lies below a directory of ours is in it: files and directories, no links.

    The directory itself may be reached by a link.

    Raises:
        UserError: something there leads elsewhere, or is neither.
    """
    waiting = [directory]
    while waiting:
        # Another run at work there may rename and remove things meanwhile.
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                waiting += _required_own(entry)


def _required_own(entry: os.DirEntry[str]) -> list[Path]:
    """The directory that an entry is, if it is one. Raises UserError for what leads elsewhere."""
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return []
    fault = _foreign(mode)
    if fault is not None:
        raise UserError(f"{entry.path}: {fault}: {REMOVE_OR_CHOOSE}")
    return [Path(entry.path)] if stat.S_ISDIR(mode) else []


def _foreign(mode: int) -> str | None:
    if stat.S_ISLNK(mode):
        return "a link, and nothing is written behind links"
    return next((named for is_special, named in SPECIAL_FILES if is_special(mode)), None)


def open_to_append(path: Path) -> IO[str]:
    """Open a text file of ours to write at its end; one that is not there is made.

    Raises:
        OSError: it cannot be written to, is a link or no file, or has another name elsewhere, where
            what is written would be, too (UnfitFileError).
    """
    if os.path.lexists(path):
        status = path.lstat()
        fault = _foreign(status.st_mode)
        if fault is None and stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            fault = "has another name elsewhere (a hard link)"
        if fault is not None:
            raise UnfitFileError(errno.EINVAL, fault, str(path))
    file = path.open("a", encoding="utf-8")
    # Another file may have been put there in between.
    if not os.path.samestat(os.fstat(file.fileno()), path.lstat()):
        file.close()
        raise UnfitFileError(errno.EINVAL, "has just been replaced", str(path))
    return file


@contextmanager
def plain_disk_errors(directory: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and the like into one line that names the place.

    Raises:
        OutputError: no space is left, the quota is used up, or `directory` cannot be written to.
        UserError: a file of ours in it is none.
    """
    try:
        yield
    except UnfitFileError as error:
        raise UserError(f"{error.filename}: {error.strerror}: {REMOVE_OR_CHOOSE}") from error
    except Exception as error:
        fault = _disk_fault(_error_number(error))
        if fault is None:
            raise
        raise OutputError(f"{_place(error, directory)}: {fault}") from error


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
    if number in IN_THE_WAY:
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
    with plain_disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_via_temporary(path, write)


def replace_via_temporary(path: Path, write: Callable[[Path], None]) -> None:
    """The same in a directory that is there; faults are raised as they come."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
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
        return move_files(scratch, directory)


def move_files(source: Path, target: Path) -> list[str]:
    """Rename the files of one directory into another on the same disk; returns their names."""
    target.mkdir(exist_ok=True)
    files = sorted(path for path in source.iterdir() if path.is_file())
    for file in files:
        # safetensors writes files that only their owner may read.
        file.chmod(source.stat().st_mode & 0o666)
        file.replace(target / file.name)
    return [file.name for file in files]


def link_or_copy(source: Path, target: Path) -> None:
    """Show a file at a second place, or copy it where the disk knows no second names."""
    try:
        os.link(source, target)
    except OSError:
        with plain_disk_errors(target.parent):
            shutil.copyfile(source, target)


@contextmanager
def scratch_directory(directory: Path) -> Iterator[Path]:
    """A temporary directory in `directory`, gone afterwards; on its disk, so that a move is safe.

    `remove_leftovers` also finds it after a kill, which the system's own place does not offer.
    One may be asked for while another is in use.
    """
    names = (f".scratch.{number}.{os.getpid()}.partial" for number in itertools.count())
    scratch = next(place for name in names if not (place := directory / name).exists())
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


def sha256_of(path: Path, within: Path | None = None) -> str:
    """Hex sha256 of a file's content; `within` is that of `open_bounded`. Raises OSError."""
    with open_bounded(path, within=within) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: str) -> str:
    """Hex sha256 of some strings, told apart by position."""
    content = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        content.update(len(encoded).to_bytes(8, "little"))
        content.update(encoded)
    return content.hexdigest()
