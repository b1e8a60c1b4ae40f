"""YAML from strangers: plain values of bounded size, or one reason why not.

An alias may stand for a list of aliases, so that a short text means billions of values; a number
may have thousands of digits. What is read here can be gone through and printed without a thought.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import date
from typing import Any

import yaml

from hibprune.errors import shortened

MAX_VALUES = 10_000
MAX_DEPTH = 50
MAX_DIGITS = 100
"""Characters of a number or a date."""
MAX_REASON = 200

PLAIN = (str, int, float, bool, date, type(None))
"""What is no list and no mapping; a bool is an int and a time is a date."""
HALF_CHARACTERS = range(0xD800, 0xE000)
"""What UTF-16 needs two of to make a character."""


class NotYAMLError(ValueError):
    """A text that is no YAML, or not of the kind that a recipe consists of."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(shortened(reason, MAX_REASON))
        self.line = line
        """Where it shows, from 1; None where that is not known."""


def parse_yaml(text: str) -> Any:
    """The values of a YAML text: lists, mappings, text, numbers, dates; none of them shared.

    Raises:
        NotYAMLError: it is none, has a key twice, or means more than a person would write.
    """
    try:
        loader = _BoundedLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _measure(node, {}, 1)
            return _unshared(loader.construct_document(node))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYAMLError(error.problem or str(error.context), line) from error
    except yaml.YAMLError as error:
        raise NotYAMLError(str(error).partition("\n")[0]) from error
    except RecursionError as error:
        raise NotYAMLError("nested too deeply") from error
    except TypeError as error:
        raise NotYAMLError("a list or a mapping cannot be a key") from error
    except (LookupError, AttributeError, OverflowError) as error:
        # `!!int ""`, `!!bool perhaps`, `!!timestamp x`
        raise NotYAMLError("a value is not of the kind that its tag says") from error
    except NotYAMLError:
        raise
    except ValueError as error:
        # The 99th of a month; or Python's refusal to read thousands of digits.
        digits = "set_int_max_str_digits" in str(error)
        reason = "a number of thousands of digits" if digits else str(error).partition("\n")[0]
        raise NotYAMLError(reason) from error


class _BoundedLoader(yaml.SafeLoader):
    """Safe YAML of bounded size, in which a key given twice is an error instead of an override."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._values += 1
        self._depth += 1
        if self._values > MAX_VALUES:
            raise _too_many()
        if self._depth > MAX_DEPTH:
            raise NotYAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{shortened(str(key))}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _too_many() -> NotYAMLError:
    return NotYAMLError(f"more than {MAX_VALUES:,} values in it")


def _measure(node: Any, sizes: dict[int, int], depth: int) -> int:
    """The number of values below a node, every alias written out."""
    known = sizes.get(id(node))
    if known == 0:
        raise NotYAMLError("a value that is part of itself")
    if known is None:
        if depth > MAX_DEPTH:
            raise NotYAMLError("nested too deeply")
        sizes[id(node)] = 0
        known = 1 + sum(_measure(member, sizes, depth + 1) for member in _members(node))
        sizes[id(node)] = known
    if known > MAX_VALUES:
        raise _too_many()
    return known


def _members(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _unshared(value: Any, depth: int = 1) -> Any:
    """The same value with lists and mappings of its own at every place: one can be changed alone.

    Aliases can lead deeper than lists are nested.
    """
    if depth > MAX_DEPTH:
        raise NotYAMLError("nested too deeply")
    if isinstance(value, dict):
        return {_unshared(key): _unshared(member, depth + 1) for key, member in value.items()}
    if isinstance(value, list):
        return [_unshared(member, depth + 1) for member in value]
    if not isinstance(value, PLAIN):
        raise NotYAMLError(f"{type(value).__name__} is no kind of value for a recipe")
    if isinstance(value, str) and any(
        letter == "\0" or ord(letter) in HALF_CHARACTERS for letter in value
    ):
        raise NotYAMLError(f"'{shortened(value)}' holds what is no character")
    return value


def _bounded(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A constructor of numbers or dates that refuses thousands of digits, which take for ever."""

    def constructed(loader: Any, node: Any) -> Any:
        if len(node.value) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of {len(node.value):,} characters", node.start_mark
            )
        return construct(loader, node)

    return constructed


for _kind in ("int", "float", "timestamp"):
    _BoundedLoader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", _bounded(getattr(yaml.SafeLoader, f"construct_yaml_{_kind}"))
    )
