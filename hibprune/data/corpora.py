"""Utterances of public corpora as torchaudio lays them out: paths and targets, no decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from hibprune.data.utterances import (
    AudioFile,
    TargetFields,
    Utterance,
    located,
    require_kind,
    target_from,
)
from hibprune.errors import UserError
from hibprune.records.base import Record
from hibprune.records.medium import SOUND, Medium

FLUENT_SLOTS = ("action", "object", "location")


class LibriSpeech(Record):
    """LibriSpeech below `root/LibriSpeech/<subset>`, with its transcripts (upper case)."""

    media: ClassVar[tuple[Medium, ...]] = (SOUND,)

    kind: Literal["librispeech"]
    root: str
    subset: Literal[
        "train-clean-100",
        "train-clean-360",
        "train-other-500",
        "dev-clean",
        "dev-other",
        "test-clean",
        "test-other",
    ]
    download: bool = False

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The clips sorted by name. Raises UserError."""
        root = located(self.root, base)
        directory = root / "LibriSpeech" / self.subset
        require_kind(f"librispeech {self.subset}", fields, "a text per clip", "text")
        require_corpus(
            self._needed(root),
            self.download,
            f"unpack https://www.openslr.org/resources/12/{self.subset}.tar.gz in {root}",
        )

        def opened() -> Any:
            from torchaudio.datasets import LIBRISPEECH

            make_root(root, self.download)
            return LIBRISPEECH(root, url=self.subset, download=self.download)

        return [
            Utterance(path, AudioFile(root / "LibriSpeech" / path), transcript)
            for path, _, transcript, *_ in metadata(opened, directory)
        ]

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when `root` is absent, unless `offline`."""
        return missing_root(located(self.root, base), self.download or offline)

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return all(path.exists() for path in self._needed(located(self.root, base)))

    def _needed(self, root: Path) -> list[Path]:
        return [root / "LibriSpeech" / self.subset]


class FluentSpeechCommands(Record):
    """Fluent Speech Commands below `root/fluent_speech_commands_dataset`."""

    media: ClassVar[tuple[Medium, ...]] = (SOUND,)

    kind: Literal["fluent"]
    root: str
    subset: Literal["train", "valid", "test"]

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The clips in the corpus's order. Raises UserError."""
        root = located(self.root, base)
        directory = root / "fluent_speech_commands_dataset"
        require_kind(f"fluent {self.subset}", fields, "slots and a text per clip", "slots", "text")
        for slot in fields.slots:
            if slot not in FLUENT_SLOTS:
                raise UserError(
                    f"fluent {self.subset}: no slot '{slot}'; it has {', '.join(FLUENT_SLOTS)}"
                )
        require_corpus(
            self._needed(root),
            False,
            f"get the corpus from fluent.ai (registration) and unpack it in {root}",
        )

        def opened() -> Any:
            from torchaudio.datasets import FluentSpeechCommands as Corpus

            return Corpus(root, subset=self.subset)

        found = []
        for path, _, _, _, text, *slots in metadata(opened, directory):
            values = {"text": text, **dict(zip(FLUENT_SLOTS, slots, strict=True))}
            target = target_from(fields, values)
            found.append(Utterance(path, AudioFile(directory / path), target))
        return found

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when `root` is absent, unless `offline`."""
        return missing_root(located(self.root, base), offline)

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return all(path.exists() for path in self._needed(located(self.root, base)))

    def _needed(self, root: Path) -> list[Path]:
        return [root / "fluent_speech_commands_dataset" / "data" / f"{self.subset}_data.csv"]


class VoxCeleb1(Record):
    """VoxCeleb1 for speaker identification: `root/wav/id…` and `root/iden_split.txt`.

    Labels are the speakers' directory names, `id10001` to `id11251`.
    """

    media: ClassVar[tuple[Medium, ...]] = (SOUND,)

    kind: Literal["voxceleb1"]
    root: str
    subset: Literal["train", "dev", "test"]
    download: bool = False

    def utterances(self, fields: TargetFields, base: Path) -> list[Utterance]:
        """The clips sorted by path. Raises UserError."""
        root = located(self.root, base)
        require_kind(f"voxceleb1 {self.subset}", fields, "a speaker per clip", "label")
        # torchaudio fetches the split list without being asked to; here nothing is fetched unasked.
        require_corpus(
            self._needed(root),
            self.download,
            f"unpack vox1_dev_wav.zip and vox1_test_wav.zip of VoxCeleb1 in {root} and put "
            "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt beside 'wav'",
        )

        def opened() -> Any:
            from torchaudio.datasets import VoxCeleb1Identification

            make_root(root, self.download)
            return VoxCeleb1Identification(root, subset=self.subset, download=self.download)

        return [
            Utterance(path, AudioFile(root / "wav" / path), Path(path).parts[0])
            for path, *_ in metadata(opened, root / "wav")
        ]

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when `root` is absent, unless `offline`."""
        return missing_root(located(self.root, base), self.download or offline)

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return all(path.exists() for path in self._needed(located(self.root, base)))

    def _needed(self, root: Path) -> list[Path]:
        return [root / "wav", root / "iden_split.txt"]


def require_corpus(paths: list[Path], download: bool, remedy: str) -> None:
    """Raise UserError with `remedy` when one of `paths` is absent and is not to be downloaded."""
    absent = [path for path in paths if not path.exists()]
    if absent and not download:
        raise UserError(f"{absent[0]}: not found; {remedy}, or correct 'root'")


def make_root(root: Path, download: bool) -> None:
    """Make the corpus root when torchaudio is to download into it, which it expects to exist."""
    if download:
        root.mkdir(parents=True, exist_ok=True)


def missing_root(root: Path, excused: bool) -> list[str]:
    """A line when the corpus root is absent, unless that is `excused`."""
    return [] if excused or root.is_dir() else [f"{root}: no such directory (root of the corpus)"]


def metadata(opened: Callable[[], Any], place: Path) -> Iterator[tuple[Any, ...]]:
    """`get_metadata` of every clip of the torchaudio data set that `opened` returns.

    Raises UserError when the files at `place` are not what torchaudio expects, or are none.
    """
    try:
        corpus = opened()
        rows = [corpus.get_metadata(index) for index in range(len(corpus))]
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{place}: cannot be used as the published corpus: {error}") from error
    if not rows:
        raise UserError(f"{place}: holds no clips")
    yield from rows
