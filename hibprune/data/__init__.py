"""Where utterances come from: one class per kind of source, listed in `DataSource`."""

from typing import Annotated

from pydantic import Field

from hibprune.data.audio import NO_LIMITS, DurationLimits, probe_seconds, read_waveform
from hibprune.data.contents import content_digest
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
from hibprune.data.text import read_text
from hibprune.data.utterances import (
    Audio,
    AudioFile,
    Content,
    ContentFault,
    DatasetRow,
    EncodedAudio,
    Listing,
    Target,
    TargetFields,
    Text,
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
    "NO_LIMITS",
    "Audio",
    "AudioFile",
    "Content",
    "ContentFault",
    "DataSource",
    "DatasetRow",
    "DurationLimits",
    "EncodedAudio",
    "FluentSpeechCommands",
    "Folder",
    "HuggingFaceDataset",
    "LibriSpeech",
    "Listing",
    "Manifest",
    "Selection",
    "SpeechCommands",
    "Target",
    "TargetFields",
    "Text",
    "Utterance",
    "VoxCeleb1",
    "content_digest",
    "drawing_order",
    "missing_audio",
    "overlap",
    "probe_seconds",
    "read_text",
    "read_waveform",
    "require_disjoint",
    "usable",
]
