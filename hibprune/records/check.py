"""What `hibprune check` found out about a recipe, for people and for programs."""

from __future__ import annotations

from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from hibprune.records.base import Record
from hibprune.records.manifest import SkippedClip
from hibprune.records.medium import MediumName


class CheckedData(Record):
    """One set of data as it lies there; only `use` and `kind` are known where it was not listed.

    `inputs` are the clips or texts listed, `drawn` those of them that a run would take, `looked_at`
    those whose header or text was read, `decoded` the clips that were read whole, as a run does.
    `skipped` are those of them that cannot be used, `hours` the length of the others. `classes`
    counts inputs by label, or by labels of slots joined with commas; it is None for transcripts and
    for data without labels. `passed_over` are files in the same place that look like inputs but are
    not taken for any.
    """

    use: str
    kind: str
    medium: MediumName
    inputs: int | None = None
    drawn: int | None = None
    looked_at: int | None = None
    decoded: int | None = None
    hours: float | None = None
    classes: dict[str, int] | None = None
    skipped: tuple[SkippedClip, ...] = ()
    passed_over: tuple[SkippedClip, ...] = ()


class CheckReport(Record):
    """Whether a recipe can be run, as far as that can be known, and what it would run on.

    `ok` is that there are no `faults`; `not_checked` says in plain lines what was not looked at,
    `notes` what is odd about model and labels that can be used all the same and which settings are
    not used, `removes` how many units of each kind would go, or what one number for all kinds may
    take. JSON leaves the last two out where there is nothing to say.
    """

    schema_version: int = 1
    recipe: str
    ok: bool
    faults: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    removes: tuple[str, ...] = ()
    data: tuple[CheckedData, ...] = ()

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialise(self)
        spare = ("notes", "removes")
        return {name: value for name, value in content.items() if name not in spare or value}
