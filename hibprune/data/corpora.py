"""Utterances of public corpora as torchaudio lays them out: paths and targets, no decoding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from hibprune.data.labels import LabelledSource
from hibprune.data.paths import directory_fault, inside, is_there, legible, located
from hibprune.data.sound_files import AUDIO_SUFFIXES, refuse_special_files
from hibprune.data.source import Remote, Source
from hibprune.data.utterances import (
    AudioFile,
    Listing,
    Target,
    TargetFields,
    Utterance,
    require_kind,
    target_from,
)
from hibprune.errors import UserError
from hibprune.execution.files import plain_disk_errors
from hibprune.records.medium import SOUND, Medium

FLUENT_SLOTS = ("action", "object", "location")


class Corpus(Source):
    """A public corpus below the directory `root`."""

    media: ClassVar[tuple[Medium, ...]] = (SOUND,)

    kind: str
    root: str

    def problems(self, base: Path, offline: bool = False) -> list[str]:
        """A line when `root` is absent, unless `offline` or it is to be downloaded."""
        return missing_root(located(self.root, base), offline or self.remote is not None)

    def at_hand(self, base: Path) -> bool:
        """Whether the clips are on this machine, so that listing them downloads nothing."""
        return all(is_there(path) for path in self._needed(located(self.root, base)))

    @abstractmethod
    def _needed(self, root: Path) -> list[Path]:
        """Files and directories that tell whether it is there."""


class DownloadableCorpus(Corpus):
    """A corpus that torchaudio fetches if `download` is set."""

    download: bool = False

    @property
    def remote(self) -> Remote | None:
        return publisher(self.download)


class LibriSpeech(DownloadableCorpus):
    """LibriSpeech below `root/LibriSpeech/<subset>`, with its transcripts (upper case)."""

    kind: Literal["librispeech"]
    subset: Literal[
        "train-clean-100",
        "train-clean-360",
        "train-other-500",
        "dev-clean",
        "dev-other",
        "test-clean",
        "test-other",
    ]

    def listing(self, fields: TargetFields, base: Path) -> Listing:
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

        top = root / "LibriSpeech"
        return Listing(
            [
                corpus_clip(top, path, transcript)
                for path, _, transcript, *_ in metadata(opened, directory)
            ]
        )

    def _needed(self, root: Path) -> list[Path]:
        return [root / "LibriSpeech" / self.subset]


class FluentSpeechCommands(LabelledSource, Corpus):
    """Fluent Speech Commands below `root/fluent_speech_commands_dataset`.

    `label_names` gives the model's name for labels of any slot.
    """

    kind: Literal["fluent"]
    subset: Literal["train", "valid", "test"]

    def listing(self, fields: TargetFields, base: Path) -> Listing:
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
            found.append(corpus_clip(directory, path, target))
        return self.renamed(Listing(found), fields)

    def _needed(self, root: Path) -> list[Path]:
        return [root / "fluent_speech_commands_dataset" / "data" / f"{self.subset}_data.csv"]


class VoxCeleb1(LabelledSource, DownloadableCorpus):
    """VoxCeleb1 for speaker identification: `root/wav/id…` and `root/iden_split.txt`.

    Labels are the speakers' directory names, `id10001` to `id11251`, unless `label_names` gives
    the model's names for them.
    """

    kind: Literal["voxceleb1"]
    subset: Literal["train", "dev", "test"]

    def listing(self, fields: TargetFields, base: Path) -> Listing:
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

        speakers = ((path, legible(Path(path).parts[0])) for path, *_ in metadata(opened, root))
        found = [corpus_clip(root / "wav", *speaker) for speaker in speakers]
        return self.renamed(Listing(found), fields)

    def _needed(self, root: Path) -> list[Path]:
        return [root / "wav", root / "iden_split.txt"]


def require_corpus(paths: list[Path], download: bool, remedy: str) -> None:
    """Raise UserError with `remedy` when one of `paths` is absent and is not to be downloaded."""
    absent = [path for path in paths if not is_there(path)]
    if absent and not download:
        raise UserError(f"{absent[0]}: not found; {remedy}, or correct 'root'")


def make_root(root: Path, download: bool) -> None:
    """Make the corpus root when torchaudio is to download into it, which it expects to exist."""
    if download:
        with plain_disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)


def missing_root(root: Path, excused: bool) -> list[str]:
    """A line when the corpus root is absent, unless that is `excused`."""
    fault = None if excused else directory_fault(root)
    return [] if fault is None else [f"{root}: {fault} (root of the corpus)"]


def publisher(download: bool) -> Remote | None:
    """Where a corpus that may be downloaded comes from."""
    return "its publisher" if download else None


def corpus_clip(top: Path, path: str, target: Target) -> Utterance:
    """The clip that a corpus's list names, by its path below `top`.

    Raises UserError when the path leads out of it.
    """
    if inside(top, path) is None:
        raise UserError(f"{top}: the corpus lists {path!r}, which is no path inside it")
    return Utterance(legible(path), AudioFile(top / path), target)


def metadata(opened: Callable[[], Any], place: Path) -> Iterator[tuple[Any, ...]]:
    """`get_metadata` of every clip of the torchaudio data set that `opened` returns.

    Raises UserError when the files at `place` are not what torchaudio expects, or are none.
    """
    if place.is_dir():
        refuse_special_files(place, all_but=AUDIO_SUFFIXES)
    try:
        corpus = opened()
        rows = [corpus.get_metadata(index) for index in range(len(corpus))]
    except UserError:
        raise
    except Exception as error:
        # Whatever torchaudio raises over lists that are not as published.
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{place}: cannot be used as the published corpus: {reason}") from error
    if not rows:
        raise UserError(f"{place}: holds no clips")
    yield from rows
