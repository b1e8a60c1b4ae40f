"""Speech Commands as the 12-class keyword task of SUPERB: ten words, unknown words, silence."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from hibprune.data.audio import DurationLimits, probe_seconds
from hibprune.data.corpora import (
    DownloadableCorpus,
    corpus_clip,
    make_root,
    metadata,
    require_corpus,
)
from hibprune.data.labels import LabelledSource
from hibprune.data.paths import located
from hibprune.data.utterances import (
    AudioFile,
    ContentFault,
    Listing,
    TargetFields,
    Utterance,
    require_kind,
)
from hibprune.errors import UserError

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SUBSETS = ("training", "validation", "testing")
SILENCE_MILLISECONDS = 1000


class SpeechCommands(LabelledSource, DownloadableCorpus):
    """Speech Commands below `root/SpeechCommands/speech_commands_<version>`.

    Words outside `words` become `unknown`; `silence` is cut from the corpus's noise recordings.
    Either name can be null, which leaves the class out. `unknown_clips` and `silence_clips` are
    by default a tenth of the clips of `words` each, the mix of the published test set
    (2,567 + 257 + 257 clips in v0.01) on which SUPERB reports. `label_names` gives the model's
    name for words and the two classes.
    """

    kind: Literal["speechcommands"]
    version: Literal["v0.01", "v0.02"] = "v0.01"
    subset: Literal["training", "validation", "testing"]
    words: tuple[str, ...] = KEYWORDS
    unknown: str | None = "_unknown_"
    silence: str | None = "_silence_"
    unknown_clips: int | None = Field(default=None, ge=0)
    silence_clips: int | None = Field(default=None, ge=0)

    def listing(self, fields: TargetFields, base: Path) -> Listing:
        """The clips of the words, then of unknown words, then of silence. Raises UserError."""
        root = located(self.root, base)
        top = root / "SpeechCommands"
        release = f"speech_commands_{self.version}"
        require_kind(f"speechcommands {self.subset}", fields, "a label per clip", "label")
        require_corpus(
            self._needed(root),
            self.download,
            f"unpack http://download.tensorflow.org/data/{release}.tar.gz in {top / release}",
        )

        def opened() -> Any:
            from torchaudio.datasets import SPEECHCOMMANDS

            make_root(root, self.download)
            return SPEECHCOMMANDS(root, url=release, subset=self.subset, download=self.download)

        clips = [(path, label) for path, _, label, *_ in metadata(opened, top / release)]
        found = [corpus_clip(top, path, label) for path, label in clips if label in self.words]
        tenth = round(len(found) / 10)
        if self.unknown is not None:
            others = [path for path, label in clips if label not in self.words]
            count = tenth if self.unknown_clips is None else self.unknown_clips
            found += [corpus_clip(top, path, self.unknown) for path in _sample(others, count)]
        if self.silence is not None:
            count = tenth if self.silence_clips is None else self.silence_clips
            found += self._silences(top, release, count)
        return self.renamed(Listing(found), fields)

    def _needed(self, root: Path) -> list[Path]:
        release = root / "SpeechCommands" / f"speech_commands_{self.version}"
        return [release / "validation_list.txt", release / "testing_list.txt"]

    def _silences(self, top: Path, release: str, count: int) -> list[Utterance]:
        """`count` clips of noise, evenly spread over the recordings.

        Each subset has a third of every recording to itself, so that calibration and validation
        never share a stretch; s3prl cuts at random anywhere.
        """
        if count == 0:
            return []
        noise = top / release / "_background_noise_"
        third = SUBSETS.index(self.subset)
        spans = []
        for recording in sorted(noise.glob("*.wav")):
            # Whole milliseconds, rounded down: the last clip must not run past the end.
            length = _milliseconds(recording) // len(SUBSETS)
            if length >= SILENCE_MILLISECONDS:
                spans.append((recording, third * length, length - SILENCE_MILLISECONDS))
        if not spans:
            raise UserError(
                f"{noise}: no noise recordings to cut silence from; "
                "unpack the whole corpus or set 'silence_clips: 0'"
            )
        steps = max(-(-count // len(spans)) - 1, 1)
        found = []
        for number in range(count):
            recording, begin, room = spans[number % len(spans)]
            start = (begin + room * (number // len(spans)) // steps) / 1000
            name = f"{recording.relative_to(top).as_posix()}@{start:.3f}s"
            audio = AudioFile(recording, start, SILENCE_MILLISECONDS / 1000)
            found.append(Utterance(name, audio, self.silence))
        return found


def _milliseconds(recording: Path) -> int:
    anything = DurationLimits(min_seconds=0, max_seconds=float("inf"))
    try:
        return int(probe_seconds(AudioFile(recording), anything) * 1000)
    except ContentFault as fault:
        raise UserError(f"{recording}: {fault.reason}") from fault


def _sample(names: list[str], count: int) -> list[str]:
    """`count` of `names`, the same ones on every machine, whatever the order of the files."""
    chosen = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())[:count]
    return sorted(chosen)
