"""Inputs that a person names: sound files, directories, manifests, or texts themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hibprune.data import AudioFile, Content, Folder, Manifest, TargetFields, Text
from hibprune.data.paths import directory_fault, file_fault
from hibprune.errors import UserError
from hibprune.models.preprocessing import Preprocessor
from hibprune.records.medium import TEXT, Medium

MANIFEST_SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True)
class Input:
    """A clip or text as it is told of: a file's path, or the text itself."""

    argument: str
    content: Content


@dataclass(frozen=True)
class NoInput:
    """What a directory or manifest did not yield: a fault, or a file that is passed over."""

    line: str
    is_fault: bool


class NamedManifest(Manifest):
    """A manifest that a person names where there is no recipe, whose keys could be set."""

    to_reach_outside: ClassVar[str] = (
        "put the manifest into a directory above it, or name the clips themselves"
    )


def inputs_of(argument: str, preprocessor: Preprocessor) -> Iterator[Input | NoInput]:
    """The clips or texts that an argument stands for.

    A directory stands for all sound files below it, a `.jsonl` or `.csv` file for what it lists by
    the columns that a `manifest` of a recipe has (`audio`, of text `text`), and anything else for
    itself: one file or, of text, the text.
    """
    path, medium = Path(argument), preprocessor.medium
    try:
        if medium is not TEXT and directory_fault(path) is None:
            source: Folder | Manifest = Folder(kind="folder", path=argument, labelled=False)
        elif path.suffix.lower() in MANIFEST_SUFFIXES and _may_be_file(path, medium):
            source = NamedManifest(kind="manifest", path=argument, labelled=False)
        else:
            yield Input(argument, preprocessor.content(argument))
            return
        found = source.listing(TargetFields("label", medium=medium), Path())
    except UserError as error:
        for line in str(error).splitlines():
            yield NoInput(line, is_fault=True)
        return
    for utterance in found.utterances:
        yield Input(_named(utterance.content), utterance.content)
    for name, reason in found.passed_over:
        yield NoInput(f"{path / name}: passed over: {reason}", is_fault=False)


def _may_be_file(path: Path, medium: Medium) -> bool:
    """Whether it is there; what is not is still no sound, but may be a text."""
    return medium is not TEXT or file_fault(path) is None


def _named(content: Content) -> str:
    if isinstance(content, Text):
        return content.content
    assert isinstance(content, AudioFile)
    return str(content.path)
