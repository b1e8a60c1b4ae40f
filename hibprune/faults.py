"""What is wrong with a recipe, in a person's words: pydantic's faults as one plain line each."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hibprune.errors import did_you_mean

GOOD_NAME = "use letters, digits, '.', '_' and '-'"

KINDS = ("kind", "method")
"""Keys that say which kind of section it is, and so which other keys it has."""

PLAIN_TYPES = {
    "model": "should be a mapping of keys to values",
    "model_attributes": "should be a mapping of keys to values",
    "dict": "should be a mapping of keys to values",
    "tuple": "should be a list",
    "string": "should be text",
    "int": "should be a whole number",
    "int_from": "should be a whole number",
    "float": "should be a number",
    "bool": "should be true or false",
}
"""Pydantic's kinds of fault without their last word (`int_parsing`, `int_type`), as people say."""


def fault_lines(error: ValidationError, whole: type[BaseModel]) -> Iterator[str]:
    """A line for each fault of what should be a `whole`: its key, what is wrong, the remedy."""
    for fault in error.errors():
        place, model = _walk(fault["loc"], whole)
        explained = _explain(fault, place, model)
        if fault["type"] == "union_tag_not_found":
            kind = fault["ctx"]["discriminator"].strip("'")
            hints = {key: did_you_mean(str(key), [kind], cutoff=0.7) for key in fault["input"]}
            misspelt = next((key for key, hint in hints.items() if hint), None)
            if misspelt is not None:
                place, explained = [*place, misspelt], f"unknown key{hints[misspelt]}"
        key = ".".join(map(str, place))
        yield f"{f'{key}: ' if key else ''}{explained}"


def left_behind(
    error: ValidationError, whole: type[BaseModel], overrides: Sequence[str]
) -> Iterator[str]:
    """A line for each override that changed a section's kind and left the old kind's keys in it."""
    given = {override.partition("=")[0]: override for override in overrides}
    places = (
        _walk(fault["loc"], whole)[0]
        for fault in error.errors()
        if fault["type"] == "extra_forbidden"
    )
    strangers = {".".join(map(str, place)) for place in places} - given.keys()
    sections = sorted({stranger.rpartition(".")[0] for stranger in strangers})
    for section in sections:
        for kind in KINDS:
            override = given.get(f"{section}.{kind}")
            if override is not None:
                value = override.partition("=")[2]
                yield (
                    f"{section}: --set {override} leaves keys that {kind} '{value}' does not have: "
                    f"replace them all, e.g. --set '{section}={{{kind}: {value}}}'"
                )


def _explain(fault: Any, place: Sequence[str | int], model: type[BaseModel] | None) -> str:
    kind, message = fault["type"], fault["msg"]
    if kind == "extra_forbidden":
        known = list(model.model_fields) if model else []
        return f"unknown key{_did_you_mean(str(place[-1]), known)}"
    if kind == "missing":
        return "missing"
    if kind == "invalid_key":
        return "a key should be text"
    if kind == "string_pattern_mismatch":
        return f"'{fault['input']}' does not do: {GOOD_NAME}"
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
    if kind == "too_short":
        return f"should have at least {fault['ctx']['min_length']} entry"
    plain = PLAIN_TYPES.get(kind.rpartition("_")[0])
    if plain is None:
        plain = message.partition(",")[0].removeprefix("Input ").removeprefix("String ")
    return f"{plain}, not {named(fault['input'])}"


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    # Keys are short, so that one wrong letter weighs more than it does in a label.
    return did_you_mean(word, known, cutoff=0.5)


def named(value: Any) -> str:
    """A value that stands where it should not, as one would say it."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"'{value}'" if isinstance(value, str) else str(value)


def _walk(
    location: Sequence[str | int], whole: type[BaseModel]
) -> tuple[list[str | int], type[BaseModel] | None]:
    """The keys a person wrote for pydantic's location, and the model the last key is looked up in.

    Pydantic puts the tag of a union's member into its locations, which no one has written.
    """
    place: list[str | int] = []
    annotation: Any = whole
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
            for name in KINDS:
                field = member.model_fields.get(name)
                if field is not None and tag in get_args(field.annotation):
                    return member
    return None
