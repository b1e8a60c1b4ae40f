"""The bases of records and settings: frozen, without unknown keys, to JSON and back unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Record(BaseModel):
    """Base of every record: unknown keys are errors, values cannot change."""

    # What validates a class is made when the class is first used: a command uses few of them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Settings(Record):
    """Base of what a recipe consists of."""

    former_names: ClassVar[dict[str, str]] = {}
    """Keys that were or could be looked for here, and what to write instead."""

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, content: Any) -> Any:
        """Let no number be read from a truth value, which pydantic would take for 1 or 0."""
        if not isinstance(content, dict):
            return content
        return {
            key: _without_truth(value) if cls._is_of_numbers(key) else value
            for key, value in content.items()
        }

    @classmethod
    def _is_of_numbers(cls, key: Any) -> bool:
        field = cls.model_fields.get(key)
        kinds = set() if field is None else set(_kinds(field.annotation))
        return bool(kinds & {int, float}) and not kinds & {bool, str}


class _Truth:
    """A truth value where numbers stand, which no number is read from."""

    def __init__(self, value: bool) -> None:
        self._said = str(value).lower()

    def __str__(self) -> str:
        return self._said


def _without_truth(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_truth(one) for one in value]
    return _Truth(value) if isinstance(value, bool) else value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types that an annotation is made of."""
    arguments = get_args(annotation)
    for argument in arguments:
        yield from _kinds(argument)
    if not arguments:
        yield annotation


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float
