"""Runs a step once: its result is kept under a key made of everything it depends on.

A killed run takes up where it stopped, and a changed recipe redoes what the change reaches. A step
counts as done when its record carries the right key and the files it made are unchanged; never
because a file merely exists.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from hibprune.execution.files import digest, sha256_of, write_text
from hibprune.records.units import Training

Result = TypeVar("Result")
Kept = TypeVar("Kept", bound=BaseModel)

Row = tuple[float, ...]
"""What a long step has found out about one sample."""


@dataclass(frozen=True)
class Partial:
    """What there is so far of a long step.

    `steps` is how many a sample takes, where the first samples had to settle that. Where samples
    are not scored one by one there are no rows, but a `training`.
    """

    rows: dict[str, Row]
    steps: int | None = None
    training: Training | None = None


@dataclass(frozen=True)
class Done(Generic[Result]):
    """A step's result. `seconds` is what it took when it ran; `resumed` if that was before."""

    key: str
    result: Result
    seconds: float
    resumed: bool


@dataclass(frozen=True)
class Step(Generic[Result]):
    """A step of a run in `directory`. Raise `version` when its code computes something else.

    `inputs` is everything that the result depends on, as JSON values: the step's slice of the
    recipe, the keys of steps before it, the identity of model and data.
    """

    directory: Path
    name: str
    version: int
    inputs: Mapping[str, Any]
    result_type: Any

    @property
    def key(self) -> str:
        inputs = json.dumps(self.inputs, sort_keys=True, ensure_ascii=False)
        return digest(self.name, str(self.version), inputs)

    @property
    def _record_path(self) -> Path:
        return self.directory / "steps" / f"{self.name}.json"

    @property
    def _partial_path(self) -> Path:
        return self.directory / "steps" / f"{self.name}.partial.json"

    def once(
        self, compute: Callable[[], Result], files: Callable[[Result], list[str]] = lambda _: []
    ) -> Done[Result]:
        """The kept result, or that of `compute`, which is then kept.

        `files` names the files, relative to the directory, that the step left there. Those it left
        for an earlier recipe, and not this time, are removed.
        """
        kept = self.kept(files)
        if kept is not None:
            return kept
        start = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - start
        record = _Record(
            step=self.name,
            version=self.version,
            key=self.key,
            seconds=seconds,
            inputs=dict(self.inputs),
            files={name: sha256_of(self.directory / name) for name in files(result)},
            result=TypeAdapter(self.result_type).dump_python(result, mode="json"),
        )
        self._remove_stale(record)
        text = json.dumps(record.model_dump(), indent=1, ensure_ascii=False)
        write_text(self._record_path, text + "\n")
        self._partial_path.unlink(missing_ok=True)
        return Done(self.key, result, seconds, resumed=False)

    def kept(self, files: Callable[[Result], list[str]] = lambda _: []) -> Done[Result] | None:
        """The result that an earlier run kept, if it is of this very step."""
        record = _read(self._record_path, _Record)
        if record is None or record.key != self.key:
            return None
        try:
            result: Result = TypeAdapter(self.result_type).validate_python(record.result)
        except ValidationError:
            return None
        if record.files.keys() != set(files(result)):
            return None
        for name, sha256 in record.files.items():
            path = self.directory / name
            if not path.is_file() or sha256_of(path) != sha256:
                return None
        return Done(self.key, result, record.seconds, resumed=True)

    def _remove_stale(self, record: _Record) -> None:
        """Remove what the step left before and not now, unless someone else has changed it."""
        earlier = _read(self._record_path, _Record)
        if earlier is None:
            return
        for name in earlier.files.keys() - record.files.keys():
            path = self.directory / name
            # A record is a file like any other: no name in it leads out of the directory.
            ours = path.resolve().is_relative_to(self.directory.resolve())
            if ours and path.is_file() and sha256_of(path) == earlier.files[name]:
                path.unlink()

    def save_partial(
        self,
        rows: Mapping[str, Row],
        *,
        steps: int | None = None,
        training: Training | None = None,
    ) -> None:
        """Keep what there is so far of a long step."""
        kept = _Partial(key=self.key, rows=dict(rows), steps=steps, training=training)
        write_text(self._partial_path, json.dumps(kept.model_dump()))

    def partial(self) -> Partial:
        """What an interrupted run of this very step had so far; empty if there was none."""
        kept = _read(self._partial_path, _Partial)
        if kept is None or kept.key != self.key:
            return Partial({})
        return Partial(kept.rows, kept.steps, kept.training)


def kept_result(directory: Path, name: str, result_type: Any) -> tuple[Any, float] | None:
    """What a step left in a directory and the seconds it took, whatever it depended on."""
    record = _read(directory / "steps" / f"{name}.json", _Record)
    if record is None:
        return None
    try:
        return TypeAdapter(result_type).validate_python(record.result), record.seconds
    except ValidationError:
        return None


class _Record(BaseModel):
    """What is kept of a finished step, and checked before it is believed."""

    step: str
    version: int
    key: str
    seconds: float
    inputs: dict[str, Any]
    files: dict[str, str]
    result: Any


class _Partial(BaseModel):
    """What is kept of a step under way."""

    key: str
    rows: dict[str, Row]
    steps: int | None = None
    training: Training | None = None


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None
