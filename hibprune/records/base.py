"""The bases of records and settings: frozen, without unknown keys, to JSON and back unchanged."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of every record: unknown keys are errors, values cannot change."""

    # What validates a class is made when the class is first used: a command uses few of them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Settings(Record):
    """Base of what a recipe consists of."""

    former_names: ClassVar[dict[str, str]] = {}
    """Keys that were or could be looked for here, and what to write instead."""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float
