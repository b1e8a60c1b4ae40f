"""Where utterances come from: one class per kind of source, listed in `DataSource`."""

from typing import Annotated

from pydantic import Field

from hibprune.data.audio import AudioFault, DurationLimits, content_digest, read_waveform
from hibprune.data.corpora import FluentSpeechCommands, LibriSpeech, VoxCeleb1
from hibprune.data.folder import Folder
from hibprune.data.huggingface import HuggingFaceDataset
from hibprune.data.manifest import Manifest
from hibprune.data.selection import (
    Selection,
    drawing_order,
    missing_audio,
    overlap,
    require_disjoint,
    usable,
)
from hibprune.data.speechcommands import SpeechCommands
from hibprune.data.utterances import (
    Audio,
    AudioFile,
    DatasetRow,
    EncodedAudio,
    Target,
    TargetFields,
    Utterance,
)

DataSource = Annotated[
    Manifest
    | Folder
    | HuggingFaceDataset
    | SpeechCommands
    | LibriSpeech
    | FluentSpeechCommands
    | VoxCeleb1,
    Field(discriminator="kind"),
]

__all__ = [
    "Audio",
    "AudioFault",
    "AudioFile",
    "DataSource",
    "DatasetRow",
    "DurationLimits",
    "EncodedAudio",
    "FluentSpeechCommands",
    "Folder",
    "HuggingFaceDataset",
    "LibriSpeech",
    "Manifest",
    "Selection",
    "SpeechCommands",
    "Target",
    "TargetFields",
    "Utterance",
    "VoxCeleb1",
    "content_digest",
    "drawing_order",
    "missing_audio",
    "overlap",
    "read_waveform",
    "require_disjoint",
    "usable",
]
