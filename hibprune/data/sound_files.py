"""Sound files below a directory, and what there was besides that looks like some."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from hibprune.data.paths import legible
from hibprune.errors import UserError
from hibprune.execution.files import read_fault

# What libsndfile recognises by content; headerless formats are left out.
AUDIO_SUFFIXES = frozenset(
    {
        ".aif",
        ".aifc",
        ".aiff",
        ".au",
        ".caf",
        ".flac",
        ".mp3",
        ".nist",
        ".oga",
        ".ogg",
        ".opus",
        ".rf64",
        ".snd",
        ".sph",
        ".voc",
        ".w64",
        ".wav",
        ".wave",
    }
)
OTHER_AUDIO_SUFFIXES = frozenset(
    {
        ".3gp",
        ".aac",
        ".ac3",
        ".amr",
        ".ape",
        ".m4a",
        ".m4b",
        ".mka",
        ".mkv",
        ".mov",
        ".mp2",
        ".mp4",
        ".pcm",
        ".ra",
        ".raw",
        ".webm",
        ".wma",
        ".wv",
    }
)
"""Of sound that libsndfile does not read, or not without being told what it is."""

HIDDEN = "hidden, by a name with a dot in front"
UNREAD_FORMAT = "not a format that is read here: convert it to WAV or FLAC"
LINKED_DIRECTORY = "a link to a directory, which is not followed"


@dataclass(frozen=True)
class Tree:
    """Paths of sound files relative to the directory, sorted, and those passed over with why."""

    clips: list[Path]
    passed_over: tuple[tuple[str, str], ...]


def sound_files(top: Path) -> Tree:
    """The sound files below `top`, by their suffix, in upper or lower case.

    Links to files are followed, wherever they lead: data are often made of them. Links to
    directories are not, since they can lead in a circle or through a whole disk.

    Raises UserError when a directory in it cannot be looked into.
    """
    clips: list[Path] = []
    passed_over: list[tuple[str, str]] = []
    for name, is_linked_directory in walked(top):
        suffix = name.suffix.lower()
        if is_linked_directory:
            passed_over.append((legible(name.as_posix()), LINKED_DIRECTORY))
        elif suffix in AUDIO_SUFFIXES and is_hidden(name):
            passed_over.append((legible(name.as_posix()), HIDDEN))
        elif suffix in AUDIO_SUFFIXES:
            clips.append(name)
        elif suffix in OTHER_AUDIO_SUFFIXES:
            passed_over.append((legible(name.as_posix()), UNREAD_FORMAT))
    return Tree(sorted(clips), tuple(sorted(passed_over)))


def walked(top: Path) -> Iterator[tuple[Path, bool]]:
    """Every file below `top` by its relative path, and every link to a directory (then True).

    Raises UserError when a directory in it cannot be looked into.
    """
    for directory, directories, files in os.walk(top, onerror=_refuse):
        here = Path(directory)
        linked = [name for name in directories if (here / name).is_symlink()]
        for name in linked:
            yield (here / name).relative_to(top), True
        for name in files:
            yield (here / name).relative_to(top), False


def refuse_special_files(top: Path, all_but: Container[str] = ()) -> None:
    """Raise UserError when there is a pipe, a device or a socket below `top`, hidden or not.

    For libraries that open what they find there. Files with a suffix of `all_but` are not looked
    at, nor what is behind links to directories.
    """
    for name, is_linked_directory in walked(top):
        path = top / name
        if is_linked_directory or name.suffix.lower() in all_but:
            continue
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError):
            continue
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: a pipe or a device, not a file: take it out")


def is_hidden(name: Path) -> bool:
    """Whether a relative path has a part that starts with a dot."""
    return any(part.startswith(".") for part in name.parts)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be looked into: {read_fault(error)}") from error
