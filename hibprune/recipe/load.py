"""Reading a recipe: YAML in, a frozen `Recipe` or one plain line per fault out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from hibprune.errors import UserError, shortened
from hibprune.execution.files import MAX_RECIPE_BYTES, read_fault, read_text_bounded
from hibprune.recipe.bounded_yaml import MAX_DEPTH, NotYAMLError, parse_yaml
from hibprune.recipe.faults import GOOD_NAME, fault_lines, left_behind, named
from hibprune.recipe.settings import NAME_PATTERN, Recipe

MOST_FAULTS = 20
LONGEST_FAULT = 500
LARGEST_NUMBER = 2**53
"""Up to which every whole number is exact in JSON, as it is in most programs that read it."""


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
        name = path.stem
        if not re.fullmatch(NAME_PATTERN, name):
            raise UserError(
                f"{path}: name: missing, and '{shortened(name)}' does not do for one: {GOOD_NAME}"
            )
        content["name"] = name
        # The copy a run keeps has another file name.
        text = _with_name(text, content)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        faults = [*left_behind(error, Recipe, overrides), *fault_lines(error, Recipe)]
        raise _refusal(path, faults) from error
    faults = [*_unfit_values("", recipe.model_dump())]
    if faults:
        raise _refusal(path, faults)
    if overrides:
        text = _dumped(content)
    return LoadedRecipe(recipe, path, text)


def _refusal(path: Path, faults: Sequence[str]) -> UserError:
    """A line for each fault; past a page of them, how many more there are."""
    lines = [f"{path}: {shortened(fault, LONGEST_FAULT)}" for fault in faults[:MOST_FAULTS]]
    if len(faults) > MOST_FAULTS:
        lines.append(f"{path}: {len(faults) - MOST_FAULTS:,} more faults")
    return UserError("\n".join(lines))


def _with_name(text: str, content: dict[str, Any]) -> str:
    """A recipe's text with its name in front, where that comes to `content`; else a new text."""
    # In quotes where the name alone would be a number or a date.
    first = _dumped({"name": content["name"]})
    try:
        same = parse_yaml(f"{first}{text}") == content
    except NotYAMLError:
        # One mapping in braces, or a text that begins with marks of its own.
        same = False
    return f"{first}{text}" if same else _dumped(content)


def _dumped(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(text)
    except NotYAMLError as error:
        line = f":{error.line}" if error.line else ""
        raise UserError(f"{path}{line}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        # What a link leads to may be nothing to repeat.
        found = "text" if isinstance(content, str) and len(content) > 40 else named(content)
        raise UserError(f"{path}: a recipe is a mapping of keys to values, not {found}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    keys, equals, value = override.partition("=")
    *parents, last = keys.split(".")
    said = f"--set {shortened(override)}"
    if not equals or not all((*parents, last)) or len(parents) >= MAX_DEPTH:
        raise UserError(f"{said}: give it as key.path=value, e.g. budget.fraction=0.3")
    target = content
    for place, key in enumerate(parents):
        # An empty section (`export:`) is None in YAML.
        if target.get(key) is None:
            target[key] = {}
        target = target[key]
        if not isinstance(target, dict):
            named_place = shortened(".".join(parents[: place + 1]))
            raise UserError(f"{said}: {named_place} has no keys in it")
    try:
        target[last] = parse_yaml(value)
    except NotYAMLError as error:
        raise UserError(f"{said}: '{shortened(value)}' is not a YAML value") from error


def _unfit_values(key: str, value: Any) -> Iterator[str]:
    """A line for each value that no key takes: a text of several lines, which would tell of faults
    that there are not; a number that is not finite, or whole and beyond what JSON holds exactly.
    """
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: should be a finite number"
    elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        yield f"{key}: should be at most {LARGEST_NUMBER:,}"
    elif isinstance(value, str) and len(value.splitlines()) > 1:
        yield f"{key}: should be one line, not '{shortened(value)}'"
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, member in items:
            yield from _unfit_values(f"{key}.{name}" if key else str(name), member)
