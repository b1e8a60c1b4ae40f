"""The typed recipe: YAML in, a frozen `Recipe` or one plain line per fault out."""

from __future__ import annotations

import difflib
import types
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hibprune.attribution import HeadInformationBottleneck, Method
from hibprune.bench import BenchmarkSettings
from hibprune.checkpoint import ModelSource
from hibprune.data import DataSource, DurationLimits
from hibprune.errors import UserError
from hibprune.export import ExportSettings
from hibprune.planning import Budget
from hibprune.tasks import Task


class Settings(BaseModel):
    """Base of what a recipe consists of: unknown keys are errors, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClipLimits(Settings):
    """Which clips can be used, and what share of them may be unusable before the run stops."""

    min_seconds: float = Field(default=0.1, gt=0)
    max_seconds: float = Field(default=40.0, gt=0)
    max_unreadable: float = Field(default=0.01, ge=0, lt=1)

    @property
    def durations(self) -> DurationLimits:
        return DurationLimits(min_seconds=self.min_seconds, max_seconds=self.max_seconds)


class Calibration(ClipLimits):
    """The clips that heads are scored on, drawn by the recipe's seed and balanced over classes.

    `labels: model` takes the model's own predictions for the truth, for audio without labels.
    """

    source: DataSource
    samples: int = Field(default=200, ge=1)
    labels: Literal["dataset", "model"] = "dataset"


class Validation(ClipLimits):
    """The clips the metric is measured on: all, or `limit` of them drawn by the recipe's seed."""

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

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    model: ModelSource
    task: Task
    calibration: Calibration
    validation: Validation
    attribution: Method = HeadInformationBottleneck(method="hib")
    budget: Budget
    export: ExportSettings = ExportSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()
    gates: Gates = Gates()
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _gates_fit_the_task(self) -> Recipe:
        wrong = "largest_wer_rise" if self.task.higher_is_better else "largest_accuracy_drop"
        if getattr(self.gates, wrong) is not None:
            raise ValueError(f"gates.{wrong}: the metric of {self.task.kind} is {self.task.metric}")
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
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    content = _parse(text, path)
    for override in overrides:
        _apply(content, override)
    content.setdefault("name", path.stem)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(_fault_lines(error, content, path))) from error
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


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not {_named(content)}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    keys, equals, value = override.partition("=")
    if not equals or not all(keys.split(".")):
        raise UserError(f"--set {override}: give it as key.path=value, e.g. budget.fraction=0.3")
    *parents, last = keys.split(".")
    target = content
    for place, key in enumerate(parents):
        target = target.setdefault(key, {})
        if not isinstance(target, dict):
            raise UserError(f"--set {override}: {'.'.join(parents[: place + 1])} has no keys in it")
    try:
        target[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: '{value}' is not a YAML value") from error


def _fault_lines(error: ValidationError, content: Mapping[str, Any], path: Path) -> Iterable[str]:
    for fault in error.errors():
        place, model = _walk(fault["loc"], content)
        key = ".".join(map(str, place))
        yield f"{path}: {f'{key}: ' if key else ''}{_explain(fault, place, model)}"


def _explain(fault: Any, place: Sequence[str | int], model: type[BaseModel] | None) -> str:
    kind, message = fault["type"], fault["msg"]
    if kind == "extra_forbidden":
        known = list(model.model_fields) if model else []
        return f"unknown key{_did_you_mean(str(place[-1]), known)}"
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"missing key {fault['ctx']['discriminator']}"
    if kind == "union_tag_invalid":
        context = fault["ctx"]
        known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return (
            f"unknown {context['discriminator'].strip(chr(39))} '{context['tag']}'"
            f"{_did_you_mean(context['tag'], known) or ': one of ' + ', '.join(known)}"
        )
    if kind == "literal_error":
        return f"'{fault['input']}' is not one of {fault['ctx']['expected']}"
    if kind == "value_error":
        return str(message.removeprefix("Value error, "))
    shown = f", not {_named(fault['input'])}" if kind.endswith(("_type", "_parsing")) else ""
    return f"{message[0].lower()}{message[1:]}{shown}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _named(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"'{value}'"


def _walk(
    location: Sequence[str | int], content: Any
) -> tuple[list[str | int], type[BaseModel] | None]:
    """The keys a person wrote for pydantic's location, and the model the last key is looked up in.

    Pydantic puts the tag of a union's member into its locations, which no one has written.
    """
    place: list[str | int] = []
    annotation: Any = Recipe
    holder: type[BaseModel] | None = None
    for step in location:
        member = _member_with_tag(annotation, step)
        if member is not None:
            annotation = holder = member
            continue
        place.append(step)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            holder = annotation
            field = annotation.model_fields.get(str(step))
            annotation = None
            if field is not None:
                # Pydantic keeps a field's Annotated metadata apart from its annotation.
                annotation = field.annotation
    return place, holder


def _member_with_tag(annotation: Any, tag: str | int) -> type[BaseModel] | None:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    for member in get_args(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name in ("kind", "method"):
                field = member.model_fields.get(name)
                if field is not None and tag in get_args(field.annotation):
                    return member
    return None
