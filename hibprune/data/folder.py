"""Utterances in a directory tree, a sub-directory for each class."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from hibprune.data.labels import LabelledSource
from hibprune.data.paths import directory_fault, legible, located
from hibprune.data.sound_files import AUDIO_SUFFIXES, sound_files
from hibprune.data.utterances import AudioFile, Listing, TargetFields, Utterance, require_kind
from hibprune.errors import UserError
from hibprune.records.medium import SOUND, Medium


class Folder(LabelledSource):
    """A directory with a sub-directory for each class, named as its label.

    `label_names` gives the model's name for directories: a mapping, or a list by number. With
    `labelled: false` a tree of clips without classes. Links to files are followed, links to
    directories are not; hidden files are left out.
    """

    media: ClassVar[tuple[Medium, ...]] = (SOUND,)

    kind: Literal["folder"]
    path: str
    labelled: bool = True

    def listing(self, fields: TargetFields, base: Path) -> Listing:
        """The clips sorted by path. Raises UserError when there are none, or stray ones."""
        top = located(self.path, base)
        fault = directory_fault(top)
        if fault is not None:
            raise UserError(f"{top}: {fault}")
        if self.labelled:
            require_kind(str(top), fields, "a label per directory", "label")
        tree = sound_files(top)
        if not tree.clips:
            raise UserError(f"{top}: holds no sound files ({' '.join(sorted(AUDIO_SUFFIXES))})")
        found = [
            Utterance(legible(name.as_posix()), AudioFile(top / name), self._label(name, top))
            for name in tree.clips
        ]
        return self.renamed(Listing(found, tree.passed_over), fields)

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when the directory does not exist."""
        top = located(self.path, base)
        fault = directory_fault(top)
        return [] if fault is None else [f"{top}: {fault}"]

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return directory_fault(located(self.path, base)) is None

    def _label(self, name: Path, top: Path) -> str | None:
        if not self.labelled:
            return None
        if len(name.parts) == 1:
            raise UserError(
                f"{top / name}: lies outside the class directories; "
                "move it into its class's or set 'labelled: false'"
            )
        return legible(name.parts[0])
