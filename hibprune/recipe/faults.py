"""What is wrong with a recipe, in a person's words: pydantic's faults as one plain line each."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter, ValidationError

from hibprune.errors import did_you_mean, shortened

GOOD_NAME = "use letters, digits, '.', '_' and '-'"

KINDS = ("kind", "method")
"""Keys that say which kind of section it is, and so which other keys it has."""

UNIONS = (Union, types.UnionType)
"""`Optional[int]` and `int | None`."""

NOUNS = {
    "object": "a mapping of keys to values",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
}
"""The types of JSON schema, as people say."""

PLAIN_TYPES = {
    "model": "object",
    "model_attributes": "object",
    "dict": "object",
    "tuple": "array",
    "list": "array",
    "string": "string",
    "int": "integer",
    "int_from": "integer",
    "float": "number",
    "bool": "boolean",
}
"""The type wanted, by pydantic's kinds of fault without their last word (`int_parsing`)."""

BOUNDS = {
    "minimum": "from {:g} up",
    "exclusiveMinimum": "above {:g}",
    "maximum": "up to {:g}",
    "exclusiveMaximum": "below {:g}",
}
"""What JSON schema calls the limits of a number, as people say."""


@dataclass(frozen=True)
class Place:
    """Where a fault is: the keys a person wrote, and what is known of the last of them.

    It is looked up in `model`, one of the `kinds` that its section could be of. `choice` is the
    union of plain types that the key's value should be of; `is_key`: that the key itself should be.
    """

    keys: tuple[str | int, ...]
    model: type[BaseModel] | None = None
    kinds: tuple[type[BaseModel], ...] = ()
    choice: Any = None
    is_key: bool = False


def fault_lines(error: ValidationError, whole: type[BaseModel]) -> Iterator[str]:
    """A line for each fault of what should be a `whole`: its key, what is wrong, the remedy."""
    for place, group in groupby(error.errors(), lambda fault: _place(fault["loc"], whole)):
        faults: list[Any] = list(group)
        if place.choice is not None:
            # Pydantic gives a fault for each type that the value is not of, and one as deep as the
            # union itself holds the whole value.
            faults = [min(faults, key=lambda fault: len(fault["loc"]))]
        for fault in faults:
            if fault["type"] == "too_short" and len(fault["input"]) >= fault["ctx"]["min_length"]:
                # Entries that are wrong do not count; they have lines of their own.
                continue
            keys, explained = place.keys, _explain(fault, place)
            if fault["type"] == "union_tag_not_found":
                kind = fault["ctx"]["discriminator"].strip("'")
                hints = {key: did_you_mean(str(key), [kind], cutoff=0.7) for key in fault["input"]}
                misspelt = next((key for key, hint in hints.items() if hint), None)
                if misspelt is not None:
                    keys, explained = (*keys, misspelt), f"unknown key{hints[misspelt]}"
            named_place = ".".join(shortened(str(key)) for key in keys)
            yield f"{f'{named_place}: ' if named_place else ''}{explained}"


def left_behind(
    error: ValidationError, whole: type[BaseModel], overrides: Sequence[str]
) -> Iterator[str]:
    """A line for each override that changed a section's kind and left the old kind's keys in it."""
    given = {override.partition("=")[0]: override for override in overrides}
    places = (
        _place(fault["loc"], whole).keys
        for fault in error.errors()
        if fault["type"] == "extra_forbidden"
    )
    strangers = {".".join(map(str, keys)) for keys in places} - given.keys()
    sections = sorted({stranger.rpartition(".")[0] for stranger in strangers})
    for section in sections:
        for kind in KINDS:
            override = given.get(f"{section}.{kind}")
            if override is not None:
                value = override.partition("=")[2]
                yield (
                    f"{section}: --set {shortened(override)} leaves keys that {kind} "
                    f"'{shortened(value)}' does not have: "
                    f"replace them all, e.g. --set '{section}={{{kind}: {shortened(value)}}}'"
                )


def _explain(fault: Any, place: Place) -> str:
    kind, message = fault["type"], fault["msg"]
    subject = "a key should be" if place.is_key else "should be"
    if place.choice is not None:
        return f"{subject} {_one_of(place.choice, fault['input'])}"
    if kind == "extra_forbidden":
        return _stranger(str(place.keys[-1]), place)
    if kind == "missing":
        return "missing"
    if kind == "invalid_key":
        return "a key should be text"
    if kind == "string_pattern_mismatch":
        return f"{named(fault['input'])} does not do: {GOOD_NAME}"
    if kind == "union_tag_not_found":
        return f"missing key {fault['ctx']['discriminator']}"
    if kind == "union_tag_invalid":
        context = fault["ctx"]
        known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        kind, tag = context["discriminator"].strip("'"), context["tag"]
        hint = _did_you_mean(tag, known) or f": one of {', '.join(known)}"
        return f"unknown {kind} '{shortened(tag)}'{hint}"
    if kind == "literal_error":
        return f"{named(fault['input'])} is not one of {fault['ctx']['expected']}"
    if kind == "value_error":
        return str(message.removeprefix("Value error, "))
    if kind == "finite_number":
        return "should be a finite number"
    if kind == "too_short":
        return f"should have at least {fault['ctx']['min_length']} entry"
    plain = PLAIN_TYPES.get(kind.rpartition("_")[0])
    if plain is not None:
        return f"{subject} {NOUNS[plain]}, not {named(fault['input'])}"
    wanted = message.partition(",")[0].removeprefix("Input ").removeprefix("String ")
    return f"{wanted}, not {named(fault['input'])}"


def _stranger(key: str, place: Place) -> str:
    """What to say of a key that its section does not have."""
    if place.model is None:
        return "unknown key"
    now = getattr(place.model, "former_names", {}).get(key)
    if now is not None:
        return f"write {now} instead"
    owners = [kind for kind in place.kinds if key in kind.model_fields]
    if not owners:
        return f"unknown key{_did_you_mean(key, list(place.model.model_fields))}"
    tag, (own, *_) = _tag(place.model)
    others = ", ".join(name for owner in owners for name in _tag(owner)[1])
    return f"not a setting of {own} (of {others}): leave it out or change the {tag}"


def _one_of(choice: Any, value: Any) -> str:
    """The types of a union and the value that is of none of them."""
    schema = TypeAdapter(choice).json_schema()
    wanted = [noun for member in schema["anyOf"] for noun in _nouns(member)]
    words = [word for member in schema["anyOf"] for word in _words(member)]
    said = " or ".join(part for part in (", ".join(wanted[:-1]), wanted[-1]) if part)
    hint = _did_you_mean(value, words) if isinstance(value, str) else ""
    return f"{said}, not {named(value)}{hint}"


def _words(schema: Mapping[str, Any]) -> list[str]:
    """The words that a member of a union allows, where it allows only some."""
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [str(value) for value in values]


def _nouns(schema: Mapping[str, Any]) -> list[str]:
    """What a member of a union may be, as one would say it; nothing for an empty value."""
    if schema.get("type") == "null":
        return []
    words = _words(schema)
    if words:
        return [f"'{word}'" for word in words]
    bounds = [said.format(schema[bound]) for bound, said in BOUNDS.items() if bound in schema]
    return [" ".join([NOUNS[schema.get("type", "object")], *bounds])]


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    # Keys are short, so that one wrong letter weighs more than it does in a label.
    return did_you_mean(word, known, cutoff=0.5)


def named(value: Any) -> str:
    """A value that stands where it should not, as one would say it; not all of a long one."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{shortened(value)}'" if isinstance(value, str) else shortened(str(value))


def _place(location: Sequence[str | int], whole: type[BaseModel]) -> Place:
    """The place of pydantic's location, without what no one has written.

    Those are the tag of a union's member, the types of a union and the mark of a key.
    """
    keys: list[str | int] = []
    annotation: Any = whole
    key_type: Any = None
    place = Place(())
    for step in location:
        annotation = _without_none(annotation)
        arguments = get_args(annotation)
        if step == "[key]":
            annotation, place = key_type, replace(place, is_key=True)
        elif get_origin(annotation) in UNIONS:
            kinds = tuple(one for one in arguments if _is_model(one))
            member = next((kind for kind in kinds if step in _tag(kind)[1]), None)
            if member is None:
                return replace(place, choice=annotation)
            annotation, place = member, replace(place, model=member, kinds=kinds)
        else:
            keys.append(step)
            place = replace(place, keys=tuple(keys))
            if _is_model(annotation):
                if annotation is not place.model:
                    place = replace(place, model=annotation, kinds=())
                field = annotation.model_fields.get(str(step))
                # Pydantic keeps a field's Annotated metadata apart from its annotation.
                annotation = field.annotation if field else None
            elif get_origin(annotation) is dict:
                key_type, annotation = arguments
            else:
                annotation = arguments[0] if arguments else None
    return place


def members_of(annotation: Any) -> tuple[type[BaseModel], ...]:
    """The models that a field may be of: one, several of a union, or none."""
    plain = _without_none(annotation)
    members = get_args(plain) if get_origin(plain) in UNIONS else (plain,)
    return tuple(member for member in members if _is_model(member))


def _without_none(annotation: Any) -> Any:
    """The type without what is known of it besides, and without None where one other is left."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in UNIONS:
        members = [one for one in get_args(annotation) if one is not types.NoneType]
        return members[0] if len(members) == 1 else annotation
    return annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _tag(model: type[BaseModel]) -> tuple[str, tuple[str, ...]]:
    """The key that tells a section's kind, and what it says where the section is this model."""
    for key in KINDS:
        if key in model.model_fields:
            return key, get_args(model.model_fields[key].annotation)
    return "", ()
