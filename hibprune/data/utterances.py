"""What a data source hands on: clips not read yet, or texts, each with a name and a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hibprune.data.paths import RowFiles
from hibprune.errors import UserError
from hibprune.records.medium import SOUND, TEXT, Medium

WANTED = {"label": "one label per clip", "text": "a text per clip", "slots": "a label per slot"}

Target = str | dict[str, str] | None


class ContentFault(Exception):  # noqa: N818 - the clip or text is at fault, not the program
    """A clip or text that cannot be used; `reason` says why in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class AudioFile:
    """A sound file, or `seconds` of it from `start_seconds` on."""

    path: Path
    start_seconds: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class EncodedAudio:
    """A sound file held in memory, as encoded."""

    data: bytes


@dataclass(frozen=True)
class DatasetRow:
    """The undecoded audio of one row of a Hugging Face data set, fetched only when it is read.

    `rows` is a `datasets.Dataset` whose `column` is `Audio(decode=False)`; `files` says where the
    sound lies that a row only names.
    """

    rows: Any = field(repr=False, compare=False)
    index: int
    column: str
    files: RowFiles


@dataclass(frozen=True)
class Text:
    """A text that is a model's input, as its source holds it."""

    content: str


Audio = AudioFile | EncodedAudio | DatasetRow
Content = Audio | Text


@dataclass(frozen=True)
class Utterance:
    """One clip or text: `id` names it to a person and is stable between runs.

    `target` is a label, a transcript, or a label per slot; None when there is none.
    """

    id: str
    content: Content
    target: Target

    @property
    def medium(self) -> Medium:
        return TEXT if isinstance(self.content, Text) else SOUND


@dataclass(frozen=True)
class Listing:
    """What a source holds: its utterances, and files that look like some but are passed over.

    Those are pairs of name and reason.
    """

    utterances: list[Utterance]
    passed_over: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class TargetFields:
    """What a task wants of the data: what goes in, and what is to come out.

    The target is one label, a text, or one label for each of `slots`.
    """

    kind: Literal["label", "text", "slots"]
    slots: tuple[str, ...] = ()
    medium: Medium = SOUND


def columns_wanted(
    fields: TargetFields, label: str, text: str, slots: dict[str, str]
) -> dict[str, str]:
    """The column behind each wanted field: `label`, `text`, or each slot (its own name unless set).

    Raises UserError when `slots` names a slot that the task does not have.
    """
    if fields.kind == "label":
        return {"label": label}
    if fields.kind == "text":
        return {"text": text}
    for slot in slots:
        if slot not in fields.slots:
            raise UserError(
                f"slots: the task has no slot '{slot}'; its slots are {', '.join(fields.slots)}"
            )
    return {slot: slots.get(slot, slot) for slot in fields.slots}


def target_from(fields: TargetFields, values: Mapping[str, str]) -> str | dict[str, str]:
    """The target made of the wanted ones among `values`, keyed by field."""
    if fields.kind == "slots":
        return {slot: values[slot] for slot in fields.slots}
    return values[fields.kind]


def require_kind(place: str, fields: TargetFields, offered: str, *kinds: str) -> None:
    """Raise UserError unless the task wants one of `kinds`; `offered` says what there is."""
    if fields.kind not in kinds:
        raise UserError(
            f"{place}: has {offered}, but the task needs {WANTED[fields.kind]}; "
            "choose another data source or task"
        )
