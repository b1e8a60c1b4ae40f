"""Runs a step once: its result is kept under a key made of everything it depends on.

A killed run takes up where it stopped, and a changed recipe redoes what the change reaches. A step
counts as done when its record carries the right key, its result and the files it made are as they
were left, and the result can be true; never because a file merely exists. The key of a step that
builds on another is made of that one's result, so that it is redone where that has changed.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from hibprune.execution.files import (
    digest,
    read_text_bounded,
    require_own,
    sha256_of,
    write_text,
    write_via_temporary,
)
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
    """A step's result. `seconds` is what it took when it ran; `resumed` if that was before.

    `key` is a digest of the result, of the files that belong to it and of all it depends on: it
    stands for this step among the inputs of those that build on it.
    """

    key: str
    result: Result
    seconds: float
    resumed: bool


@dataclass(frozen=True)
class Step(Generic[Result]):
    """A step of a run in `directory`. Raise `version` when its code computes something else.

    `inputs` is everything that the result depends on, as JSON values: the step's slice of the
    recipe, the keys of what was done before it, the identity of model and data. `timed` are fields
    of the result that tell of time taken, which nothing depends on.
    """

    directory: Path
    name: str
    version: int
    inputs: Mapping[str, Any]
    result_type: Any
    timed: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        inputs = json.dumps(self.inputs, sort_keys=True)
        return digest(self.name, str(self.version), inputs)

    @property
    def _record_path(self) -> Path:
        return self.directory / "steps" / f"{self.name}.json"

    @property
    def _partial_path(self) -> Path:
        return self.directory / "steps" / f"{self.name}.partial.json"

    def once(
        self,
        compute: Callable[[], Result],
        files: Callable[[Result], list[str]] = lambda _: [],
        credible: Callable[[Result], bool] = lambda _: True,
    ) -> Done[Result]:
        """The kept result, or that of `compute`, which is then kept.

        `files` names the files, relative to the directory, that the step left there. Those it left
        for an earlier recipe, and not this time, are removed. `credible` says whether a result that
        was kept can be that of this step.

        Raises:
            UserError: something in the directory leads out of it.
        """
        kept = self.kept(files, credible)
        if kept is not None:
            return kept
        require_own(self.directory)
        start = time.perf_counter()
        result = compute()
        seconds = time.perf_counter() - start
        left = {name: sha256_of(self.directory / name) for name in files(result)}
        plain = json.loads(
            json.dumps(TypeAdapter(self.result_type).dump_python(result, mode="json"))
        )
        record = _Record(
            step=self.name,
            version=self.version,
            key=self.key,
            seconds=seconds,
            inputs=dict(self.inputs),
            files=left,
            digest=result_digest(self.key, plain, left),
            result=plain,
        )
        self._remove_stale(record)
        # In ASCII, which also holds names that are no UTF-8.
        write_text(self._record_path, json.dumps(record.model_dump(), indent=1) + "\n")
        self._partial_path.unlink(missing_ok=True)
        return Done(self._key_of(record), result, seconds, resumed=False)

    def kept(
        self,
        files: Callable[[Result], list[str]] = lambda _: [],
        credible: Callable[[Result], bool] = lambda _: True,
    ) -> Done[Result] | None:
        """The result that an earlier run kept, if it is of this very step and as it was left."""
        record = _read(self._record_path, _Record, self.directory)
        if record is None or record.key != self.key or not record.intact:
            return None
        try:
            result: Result = TypeAdapter(self.result_type).validate_python(record.result)
        except ValidationError:
            return None
        if not credible(result) or record.files.keys() != set(files(result)):
            return None
        if not all(_unchanged(self.directory, *file) for file in record.files.items()):
            return None
        return Done(self._key_of(record), result, record.seconds, resumed=True)

    def _key_of(self, record: _Record) -> str:
        """What stands for a finished step, the same in every run that comes to the same."""
        lasting = record.result
        if self.timed:
            lasting = {name: value for name, value in lasting.items() if name not in self.timed}
        return result_digest(record.key, lasting, record.files)

    def _remove_stale(self, record: _Record) -> None:
        """Remove what the step left before and not now, unless someone else has changed it."""
        earlier = _read(self._record_path, _Record, self.directory)
        if earlier is not None:
            stale = {name: earlier.files[name] for name in earlier.files.keys() - record.files}
            _remove_unchanged(self.directory, stale)

    def save_partial(
        self,
        rows: Mapping[str, Row],
        *,
        steps: int | None = None,
        training: Training | None = None,
    ) -> None:
        """Keep what there is so far of a long step. Raises UserError as `once` does."""
        require_own(self.directory)
        kept = _Partial(key=self.key, rows=dict(rows), steps=steps, training=training)
        write_text(self._partial_path, json.dumps(kept.model_dump()))

    def partial(self) -> Partial:
        """What an interrupted run of this very step had so far; empty if there was none."""
        kept = _read(self._partial_path, _Partial, self.directory)
        if kept is None or kept.key != self.key:
            return Partial({})
        return Partial(kept.rows, kept.steps, kept.training)


def kept_result(directory: Path, name: str, result_type: Any) -> tuple[Any, float] | None:
    """What a step left in a directory and the seconds it took, whatever it depended on.

    None where there is no such result, or it is not as it was left.
    """
    record = _read(directory / "steps" / f"{name}.json", _Record)
    if record is None or not record.intact:
        return None
    try:
        return TypeAdapter(result_type).validate_python(record.result), record.seconds
    except ValidationError:
        return None


def hand_on(source: Path, target: Path, names: Iterable[str]) -> None:
    """Give a run what steps of another run left, records and files, in the place of its own.

    It believes them where they have the keys of its own steps. What is not as it was left is not
    given. Raises UserError as `Step.once` does.
    """
    require_own(target)
    for name in names:
        record = _read(source / "steps" / f"{name}.json", _Record, source)
        if record is None or not record.intact:
            continue
        if not all(_unchanged(source, *file) for file in record.files.items()):
            continue
        for file in record.files:
            write_via_temporary(target / file, partial(shutil.copyfile, source / file))
        write_text(
            target / "steps" / f"{name}.json", json.dumps(record.model_dump(), indent=1) + "\n"
        )


def undo(directory: Path, name: str) -> None:
    """Remove what a step left that is no longer part of the run, and its record.

    Not what someone else has changed. Raises UserError as `Step.once` does.
    """
    require_own(directory)
    path = directory / "steps" / f"{name}.json"
    record = _read(path, _Record, directory)
    if record is not None:
        _remove_unchanged(directory, record.files)
        path.unlink()


def _remove_unchanged(directory: Path, files: Mapping[str, str]) -> None:
    for name, sha256 in files.items():
        if _unchanged(directory, name, sha256):
            (directory / name).unlink()


def _unchanged(directory: Path, name: str, sha256: str) -> bool:
    """Whether a file in the directory is there with this content."""
    # A record is a file like any other: no name in it leads out of the directory.
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        return False
    try:
        return sha256_of(directory / inside, within=directory) == sha256
    except OSError:
        return False


class _Record(BaseModel):
    """What is kept of a finished step, and checked before it is believed."""

    step: str
    version: int
    key: str
    seconds: float = Field(ge=0)
    inputs: dict[str, Any]
    files: dict[str, str]
    digest: str
    result: Any

    @property
    def intact(self) -> bool:
        """Whether the result is the one that was kept."""
        return self.digest == result_digest(self.key, self.result, self.files)


class _Partial(BaseModel):
    """What is kept of a step under way."""

    key: str
    rows: dict[str, Row]
    steps: int | None = None
    training: Training | None = None


def result_digest(key: str, result: object, files: Mapping[str, str]) -> str:
    """A digest of a result in JSON values, of its files' content and of what both depend on.

    It tells of change, not of origin: whoever can write a record can also make its digest.
    """
    return digest(key, *(json.dumps(part, sort_keys=True) for part in (result, dict(files))))


def _read(path: Path, kind: type[Kept], within: Path | None = None) -> Kept | None:
    """A record, or None where there is none that can be read; numbers in it are finite."""
    try:
        text = read_text_bounded(path, within=within)
        return kind.model_validate(json.loads(text, parse_float=_finite, parse_constant=_finite))
    except (OSError, ValueError, RecursionError):
        return None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not finite")
    return value
