"""Paths in recipes and data: where they start, what they must not leave, and how they are told."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from hibprune.errors import UserError
from hibprune.execution.files import read_fault

NO_FILE = "no such file"


def located(path: str, base: Path) -> Path:
    """`path` as written in a recipe, seen from the recipe's directory `base`.

    Raises UserError when it starts with `~name` of a user that there is not.
    """
    try:
        return base / Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: no such user on this machine: write the whole path") from error


def directory_fault(path: Path) -> str | None:
    """Why a path cannot be used as a directory, in a few words; None when it can."""
    try:
        path.stat()
        if path.is_dir():
            os.scandir(path).close()
            return None
        return "not a directory"
    except ValueError:
        return "no such directory"
    except OSError as error:
        return "no such directory" if _is_absence(error) else read_fault(error)


def file_fault(path: Path, missing: str = NO_FILE) -> str | None:
    """Why a path cannot be used as a regular file, in a few words; None when it may be one."""
    try:
        path.stat()
    except ValueError:
        return missing
    except OSError as error:
        return missing if _is_absence(error) else f"cannot be read: {read_fault(error)}"
    if path.is_file():
        return None
    return "is a directory, not a file" if path.is_dir() else "is a pipe or a device, not a file"


def _is_absence(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


def is_there(path: Path) -> bool:
    """Whether there is anything at a path, as far as one may look."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def inside(top: Path, name: str) -> Path | None:
    """`name` relative to the directory `top`, or None when it leads out of it.

    Judged by the path as written, not by where links lead: lists come from strangers, links (as in
    the Hub's cache) are made on this machine.
    """
    start = os.path.normpath(top.absolute())
    target = Path(os.path.normpath(Path(start, name)))
    if "\0" in name or not target.is_relative_to(start):
        return None
    return target.relative_to(start)


def legible(name: str) -> str:
    """A file's name as text that can be written anywhere.

    Bytes that are not UTF-8, which Python keeps as halves of characters, stand as `\\xe9`.
    """
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        # Halves that stand for no byte: JSON can hold them.
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


@dataclass(frozen=True)
class RowFiles:
    """Where the files that a data set's rows name may lie.

    Relative paths start from the first of `directories`. Paths lead out of none of them, except
    that rows on this machine (`is_local`) may hold absolute ones.
    """

    directories: tuple[Path, ...]
    is_local: bool

    def located(self, name: str) -> Path | None:
        """The file of a row, or None when it is not the data set's to name."""
        path = self.directories[0] / name
        if self.is_local and Path(name).is_absolute():
            return path
        allowed = any(inside(top, str(path)) is not None for top in self.directories)
        return path if allowed else None
