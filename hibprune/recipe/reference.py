"""The reference of recipes as Markdown, made from the settings themselves."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hibprune.recipe.faults import BOUNDS, members_of
from hibprune.recipe.settings import Recipe

HEADER = """# Recipes

A recipe is a YAML file. Every key is below, section by section, with what it may be and what it is
where a recipe says nothing. `hibprune check RECIPE` says what is wrong with one in plain lines,
`hibprune schema` prints the same as a JSON schema for editors, and `--set section.key=value`
overrides a key on the command line. Paths are relative to the recipe.

This page is made by `hibprune schema --markdown`; a test sees that it is up to date.
"""


TOLD_ONCE = ("validation.source", "recover.data", "channel_attribution")
"""All sets of data take the same sources, and channels the methods of neurons."""


def reference_markdown() -> str:
    """Every key of a recipe: a section for each part of it, and one for each kind of a part."""
    schema = Recipe.model_json_schema()
    definitions = {**schema["$defs"], Recipe.__name__: schema}
    return "\n\n".join([HEADER.strip(), *_sections("", Recipe, definitions)]) + "\n"


def _sections(path: str, model: type[BaseModel], definitions: Mapping[str, Any]) -> Iterator[str]:
    properties = definitions[model.__name__]["properties"]
    yield _section(path or "The whole", model, properties)
    for name, field in model.model_fields.items():
        place = f"{path}.{name}" if path else name
        for kind in members_of(field.annotation):
            tag = _tag(definitions[kind.__name__]["properties"])
            if place not in TOLD_ONCE:
                yield from _sections(f"{place}: {tag}" if tag else place, kind, definitions)


def _section(title: str, model: type[BaseModel], properties: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_type(properties[name])} | {_default(field)} |"
        for name, field in model.model_fields.items()
    ]
    table = "\n".join(["| key | may be | left out |", "| :-- | :-- | :-- |", *rows])
    return f"## {title}\n\n{inspect.cleandoc(model.__doc__ or '')}\n\n{table}"


def _tag(properties: Mapping[str, Any]) -> str:
    """What `kind` or `method` says where a section is this model; empty where it has neither."""
    tags = [properties[key].get("const", "") for key in ("kind", "method") if key in properties]
    return str(tags[0]) if tags else ""


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        options = [_type(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(options))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema or "oneOf" in schema or "discriminator" in schema or "allOf" in schema:
        return "a section, below"
    if schema.get("type") == "array":
        return f"a list: {_type(schema.get('items', {}))}" if schema.get("items") else "a list"
    if schema.get("type") == "object":
        return "a mapping"
    noun = {"string": "text", "integer": "whole number", "number": "number", "boolean": "yes or no"}
    bounds = [said.format(schema[key]) for key, said in BOUNDS.items() if key in schema]
    return " ".join([noun.get(str(schema.get("type")), "anything"), ", ".join(bounds)]).strip()


def _default(field: Any) -> str:
    if field.default is PydanticUndefined:
        made = field.default_factory() if field.default_factory else None
        return "**required**" if made is None else "nothing"
    if field.default is None:
        return "open"
    if isinstance(field.default, BaseModel):
        return "as below"
    text = json.dumps(field.default, ensure_ascii=False, default=str)
    return f"`{text}`" if len(text) < 60 else "see below"
