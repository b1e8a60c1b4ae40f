"""The typed recipe: YAML in, a frozen `Recipe` or one plain line per fault out."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hibprune.attribution import HeadInformationBottleneck, Method
from hibprune.bench import BenchmarkSettings
from hibprune.checkpoint import ModelSource
from hibprune.data import DataSource, DurationLimits
from hibprune.errors import UserError
from hibprune.export import ExportSettings
from hibprune.faults import GOOD_NAME, fault_lines, left_behind, named
from hibprune.medium import Unit
from hibprune.planning import Budget, Schedule
from hibprune.surgery.means import RemovalSettings
from hibprune.tasks import Task

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""A recipe's name is that of a directory and of a model on the Hub."""

SHORTEST_EXAMPLE: dict[Unit, float] = {"seconds": 0.1, "tokens": 1}
"""The convolutions of models of sound want some hundreds of samples."""

TIMED = ("min_seconds", "max_seconds", "crop_seconds")
"""Keys about data that only sound has."""


class Settings(BaseModel):
    """Base of what a recipe consists of: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputLimits(Settings):
    """Which clips can be used, and what share of them may be unusable before the run stops.

    Texts have no seconds: the longest that can be used is the model's to say.
    """

    min_seconds: float = Field(default=0.1, gt=0)
    max_seconds: float = Field(default=40.0, gt=0)
    max_unreadable: float = Field(default=0.01, ge=0, lt=1)

    @model_validator(mode="after")
    def _some_clip_fits(self) -> InputLimits:
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"min_seconds {self.min_seconds:g} is more than max_seconds {self.max_seconds:g}"
            )
        return self

    @property
    def durations(self) -> DurationLimits:
        return DurationLimits(min_seconds=self.min_seconds, max_seconds=self.max_seconds)


class Calibration(InputLimits):
    """What heads are scored on, drawn by the recipe's seed and balanced over classes.

    `labels: model` takes the model's own predictions for the truth, for data without labels.
    `crop_seconds` scores on the beginning of each clip, for tasks with labels: the memory of
    attribution grows with the square of the length.
    """

    source: DataSource
    samples: int = Field(default=200, ge=1)
    labels: Literal["dataset", "model"] = "dataset"
    crop_seconds: float | None = Field(default=None, gt=0)


class Validation(InputLimits):
    """What the metric is measured on: all of it, or `limit` drawn by the recipe's seed."""

    source: DataSource
    limit: int | None = Field(default=None, ge=1)


class Gates(Settings):
    """Limits that make the run end with exit code 3 when one is crossed; drops as shares (0.02).

    The metric is that of the exported model against the original one; the speed-up counts at every
    measured length; the file is the ONNX model.
    """

    largest_accuracy_drop: float | None = Field(default=None, ge=0, le=1)
    largest_wer_rise: float | None = Field(default=None, ge=0)
    smallest_speedup: float | None = Field(default=None, gt=0)
    largest_file_mb: float | None = Field(default=None, gt=0)


class Recipe(Settings):
    """Everything a run depends on."""

    name: str = Field(pattern=NAME_PATTERN, max_length=100)
    model: ModelSource
    task: Task
    calibration: Calibration
    validation: Validation
    attribution: Method = HeadInformationBottleneck(method="hib")
    budget: Budget
    schedule: Schedule = Schedule()
    removal: RemovalSettings = RemovalSettings()
    export: ExportSettings = ExportSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gates: Gates = Gates()
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _data_and_lengths_are_of_what_goes_in(self) -> Recipe:
        medium = self.task.medium
        takes = f"{self.task.kind} takes {medium.name}"
        for place, data in (("calibration", self.calibration), ("validation", self.validation)):
            if medium not in data.source.media:
                held = " or ".join(one.name for one in data.source.media)
                raise ValueError(
                    f"{place}.source: {data.source.kind} holds {held}, but {takes}: "
                    "choose another data source or task"
                )
            timed = [key for key in TIMED if key in data.model_fields_set]
            if timed and medium.unit != "seconds":
                raise ValueError(f"{place}.{timed[0]}: {takes}, which has no seconds: leave it out")
        for place, settings in (("benchmark", self.benchmark), ("export", self.export)):
            for unit in settings.model_fields_set & {"seconds", "tokens"} - {medium.unit}:
                raise ValueError(f"{place}.{unit}: {takes}: give {medium.unit}")
        return self

    @model_validator(mode="after")
    def _only_labels_survive_cropping(self) -> Recipe:
        if self.calibration.crop_seconds is not None and self.task.fields.kind == "text":
            raise ValueError("calibration.crop_seconds: a cropped clip no longer holds its text")
        return self

    @model_validator(mode="after")
    def _gates_fit_the_task(self) -> Recipe:
        right, wrong = "largest_wer_rise", "largest_accuracy_drop"
        if self.task.higher_is_better:
            right, wrong = wrong, right
        if getattr(self.gates, wrong) is not None:
            raise ValueError(
                f"gates.{wrong}: the metric of {self.task.kind} is {self.task.metric}: use {right}"
            )
        return self

    @model_validator(mode="after")
    def _lengths_are_lengths(self) -> Recipe:
        unit = self.task.medium.unit
        for place, settings in (("benchmark", self.benchmark), ("export", self.export)):
            shortest = min(getattr(settings, unit))
            if shortest < SHORTEST_EXAMPLE[unit]:
                raise ValueError(
                    f"{place}.{unit}: should be at least {SHORTEST_EXAMPLE[unit]:g}, "
                    f"not {shortest:g}"
                )
        if min(self.export.batches) < 1:
            raise ValueError(
                f"export.batches: should be at least 1, not {min(self.export.batches)}"
            )
        return self


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with the file it came from; `text` is its YAML with overrides applied."""

    recipe: Recipe
    path: Path
    text: str

    @property
    def root(self) -> Path:
        """The directory that relative paths in the recipe start from."""
        return self.path.parent


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe and apply `key.path=value` overrides.

    Raises:
        UserError: one line per fault, `path: key: what is wrong (did you mean …?)`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"{path}: cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    content = _parse(text, path)
    for override in overrides:
        _apply(content, override)
    if "name" not in content:
        content["name"] = path.stem
        # The copy a run keeps has another file name.
        text = f"name: {path.stem}\n{text}"
        if not re.match(NAME_PATTERN, path.stem):
            raise UserError(
                f"{path}: name: missing, and '{path.stem}' does not do for one: {GOOD_NAME}"
            )
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        lines = [*left_behind(error, Recipe, overrides), *fault_lines(error, Recipe)]
        raise UserError("\n".join(f"{path}: {line}" for line in lines)) from error
    faults = [f"{path}: {key}: should be a finite number" for key in _not_finite("", content)]
    if faults:
        raise UserError("\n".join(faults))
    if overrides:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return LoadedRecipe(recipe, path, text)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of a silent override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


NOT_YAML = (yaml.YAMLError, TypeError, ValueError, RecursionError)
"""What the parser raises: TypeError for a list as a key, ValueError for the 99th of a month."""


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not valid YAML: nested too deeply") from error
    except TypeError as error:
        raise UserError(f"{path}: not valid YAML: a list or a mapping cannot be a key") from error
    except NOT_YAML as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not {named(content)}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    keys, equals, value = override.partition("=")
    if not equals or not all(keys.split(".")):
        raise UserError(f"--set {override}: give it as key.path=value, e.g. budget.fraction=0.3")
    *parents, last = keys.split(".")
    target = content
    for place, key in enumerate(parents):
        # An empty section (`export:`) is None in YAML.
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: place + 1])} has no keys in it")
    try:
        target[last] = yaml.load(value, Loader=_UniqueKeyLoader)
    except NOT_YAML as error:
        raise UserError(f"--set {override}: '{value}' is not a YAML value") from error


def _not_finite(key: str, value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield key
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, member in items:
            yield from _not_finite(f"{key}.{name}" if key else str(name), member)
