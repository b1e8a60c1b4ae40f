"""The base of all records: frozen, without unknown keys, to JSON and back unchanged."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of every record: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float
