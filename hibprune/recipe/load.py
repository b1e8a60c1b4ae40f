"""Reading a recipe: YAML in, a frozen `Recipe` or one plain line per fault out."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hibprune.errors import UserError
from hibprune.execution.files import MAX_RECIPE_BYTES, read_fault, read_text_bounded
from hibprune.recipe.faults import GOOD_NAME, fault_lines, left_behind, named
from hibprune.recipe.settings import NAME_PATTERN, Recipe


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
        text = read_text_bounded(path, MAX_RECIPE_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {read_fault(error)}") from error
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
