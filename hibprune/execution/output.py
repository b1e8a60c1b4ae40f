"""The directory a run leaves behind: shaped like a Hub repository, mixed with nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hibprune.errors import UserError
from hibprune.execution.files import (
    open_to_append,
    plain_disk_errors,
    read_text_bounded,
    remove_leftovers,
    require_own,
    sha256_of,
)
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.records.manifest import FILE_NAME, Manifest

RECIPE_FILE = "recipe.yaml"
LOG_FILE = "run.log"
JUNIT_SUFFIX = ".xml"
"""Of what a user may have written beside the files of a run, none of which is called so."""
LAST_WRITTEN = (FILE_NAME, "README.md", "report.md", "report.html")
"""What says that a run is finished."""
STEPS = "steps"
PREDICTIONS = "predictions"
"""What each variant said of every validation clip, one file each."""
COMPARISON = "compare"
"""Stem of the files of a comparison, which may share the directory of a run."""
EXPLANATION = "explain"
"""Stem of the files of an explanation, which may, too."""
BESIDE = (COMPARISON, EXPLANATION)
MARKER = f"{STEPS}/.hibprune"
"""Written before anything else; tells a directory of ours from any other."""


def check_output(directory: Path) -> None:
    """See that a run may write here, without writing anything.

    Raises:
        UserError: it is a file, holds links or something that is not a run of ours, or its path is
            no text.
    """
    # `new/../there` would not exist yet here, and be `there` once `new` is made.
    directory = Path(os.path.realpath(directory))
    _require_text(directory)
    with plain_disk_errors(directory):
        if os.path.lexists(directory) and not directory.is_dir():
            kind = "is a file" if directory.is_file() else "is no directory"
            raise UserError(f"{directory}: {kind}: choose another --output")
        if not (directory / MARKER).is_file() and _holds_something(directory):
            raise UserError(
                f"{directory}: holds something that is not a hibprune run: "
                "choose another --output or empty it"
            )
        require_own(directory)


def _holds_something(directory: Path) -> bool:
    """Whether there is more than empty directories, which a disk full from the start leaves."""
    return any(
        files or any((Path(place) / name).is_symlink() for name in directories)
        for place, directories, files in os.walk(directory, onerror=_raise_unless_missing)
    )


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _require_text(directory: Path) -> None:
    """Raise UserError for bytes that are not UTF-8: libraries and JSON take none in a path."""
    try:
        str(directory).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{directory}: a name that is not UTF-8: choose another --output"
        ) from error


@contextmanager
def open_output(directory: Path) -> Iterator[None]:
    """Make the directory, keep other runs out of it, and clear what a killed run left half.

    Raises:
        UserError: it holds something else, cannot be written to, or another run is at work there.
    """
    check_output(directory)
    marker = directory / MARKER
    with plain_disk_errors(directory):
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            lock = open_to_append(marker)
        except FileNotFoundError as error:
            raise UserError(f"{directory}: cannot be made: choose another --output") from error
    with lock:
        _require_sole(lock, directory)
        remove_leftovers(directory)
        yield


def _require_sole(lock: IO[str], directory: Path) -> None:
    """Take the lock, which goes with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks.
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{directory}: another run is at work here: wait for it or choose another --output"
        ) from error


def withdraw(directory: Path) -> None:
    """Take away what says that a run is finished, before a file that it speaks of changes."""
    with plain_disk_errors(directory):
        for name in LAST_WRITTEN:
            (directory / name).unlink(missing_ok=True)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished run.

    Raises:
        UserError: the directory does not hold one, or one that no run can have left.
    """
    path = directory / FILE_NAME
    try:
        return Manifest.model_validate_json(read_text_bounded(path))
    except OSError as error:
        raise UserError(
            f"{directory}: no finished hibprune run: no {FILE_NAME} that can be read in it"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{path}: not of a run by this version of hibprune: run it again"
        ) from error


def graph_bytes(directory: Path, graphs: Sequence[str]) -> dict[str, int]:
    """Size of each graph of an exported model."""
    return {graph: (directory / ONNX_DIRECTORY / graph).stat().st_size for graph in graphs}


def file_digests(directory: Path) -> dict[str, str]:
    """sha256 of every file a user may deploy or read, by its path in the directory."""
    own = {LOG_FILE, FILE_NAME}
    others = (f"{STEPS}/", *(f"{stem}{sign}" for stem in BESIDE for sign in ".-"))
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    names = ((path, path.relative_to(directory).as_posix()) for path in paths)
    return {
        name: sha256_of(path)
        for path, name in names
        if name not in own and not name.startswith(others) and path.suffix != JUNIT_SUFFIX
    }
