"""Utterances in a directory tree, a sub-directory for each class."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from hibprune.data.utterances import AudioFile, TargetFields, Utterance, located, require_kind
from hibprune.errors import UserError
from hibprune.records.base import Record
from hibprune.records.medium import SOUND, Medium

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
        ".oga",
        ".ogg",
        ".opus",
        ".rf64",
        ".snd",
        ".w64",
        ".wav",
        ".wave",
    }
)


class Folder(Record):
    """A directory with a sub-directory for each class, named as its label.

    With `labelled: false` a tree of clips without classes.
    """

    media: ClassVar[tuple[Medium, ...]] = (SOUND,)

    kind: Literal["folder"]
    path: str
    labelled: bool = True

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The clips sorted by path. Raises UserError when there are none, or stray ones."""
        top = located(self.path, base)
        if not top.is_dir():
            raise UserError(f"{top}: no such directory")
        if self.labelled:
            require_kind(str(top), fields, "a label per directory", "label")
        found = [
            Utterance(name.as_posix(), AudioFile(top / name), self._label(name, top))
            for name in _clips(top)
        ]
        if not found:
            raise UserError(f"{top}: holds no sound files ({' '.join(sorted(AUDIO_SUFFIXES))})")
        return found

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when the directory does not exist."""
        top = located(self.path, base)
        return [] if top.is_dir() else [f"{top}: no such directory"]

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return located(self.path, base).is_dir()

    def _label(self, name: Path, top: Path) -> str | None:
        if not self.labelled:
            return None
        if len(name.parts) == 1:
            raise UserError(
                f"{top / name}: lies outside the class directories; "
                "move it into its class's or set 'labelled: false'"
            )
        return name.parts[0]


def _clips(top: Path) -> list[Path]:
    """Sound files below `top` relative to it, sorted; hidden files and directories left out."""
    names = (path.relative_to(top) for path in top.rglob("*"))
    return sorted(
        name
        for name in names
        if name.suffix.lower() in AUDIO_SUFFIXES
        and not any(part.startswith(".") for part in name.parts)
        and (top / name).is_file()
    )
