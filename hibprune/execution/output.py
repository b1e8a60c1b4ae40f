"""The directory a run leaves behind: shaped like a Hub repository, mixed with nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hibprune.errors import UserError
from hibprune.execution.files import plain_disk_errors, remove_leftovers, sha256_of
from hibprune.execution.runtime import ONNX_DIRECTORY
from hibprune.records.manifest import FILE_NAME

RECIPE_FILE = "recipe.yaml"
LOG_FILE = "run.log"
LAST_WRITTEN = (FILE_NAME, "README.md", "report.md")
"""What says that a run is finished."""
STEPS = "steps"
PREDICTIONS = "predictions"
"""What each model said of every validation clip: baseline, pruned and exported, one file each."""
COMPARISON = "compare"
"""Stem of the files of a comparison, which may share the directory of a run."""
MARKER = f"{STEPS}/.hibprune"
"""Written before anything else; tells a directory of ours from any other."""


def check_output(directory: Path) -> None:
    """See that a run may write here, without writing anything.

    Raises:
        UserError: it is a file, holds something that is not a run of ours, or its path is no text.
    """
    # `new/../there` would not exist yet here, and be `there` once `new` is made.
    directory = directory.resolve()
    _require_text(directory)
    with plain_disk_errors(directory):
        if directory.exists() and not directory.is_dir():
            raise UserError(f"{directory}: is a file: choose another --output")
        # Empty directories are what is left when the disk was full from the start.
        holds_something = any(not path.is_dir() for path in directory.rglob("*"))
    if holds_something and not (directory / MARKER).is_file():
        raise UserError(
            f"{directory}: holds something that is not a hibprune run: "
            "choose another --output or empty it"
        )


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
            lock = marker.open("a")
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


def graph_bytes(directory: Path, graphs: Sequence[str]) -> dict[str, int]:
    """Size of each graph of an exported model."""
    return {graph: (directory / ONNX_DIRECTORY / graph).stat().st_size for graph in graphs}


def file_digests(directory: Path) -> dict[str, str]:
    """sha256 of every file a user may deploy or read, by its path in the directory."""
    own = {LOG_FILE, FILE_NAME}
    others = (f"{STEPS}/", f"{COMPARISON}.", f"{COMPARISON}-")
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    names = ((path, path.relative_to(directory).as_posix()) for path in paths)
    return {
        name: sha256_of(path)
        for path, name in names
        if name not in own and not name.startswith(others)
    }
