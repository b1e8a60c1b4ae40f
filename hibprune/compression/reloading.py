"""What a configuration remembers of units that are gone, and model classes that build without them.

Which units of a layer went stands as how many there were at first, and a number in hexadecimal
whose bit i is 1 where unit i is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

Rebuild = Callable[[Any, Any], None]
"""Takes a base model that was just built and its configuration, and takes out what is gone."""

Remembered = tuple[int, str]
"""How many units there were at first, and which of them are gone."""


def remembered(count: int, gone: Collection[int]) -> Remembered:
    """What the configuration is to remember of `count` units of which some are gone."""
    return count, f"{sum(1 << place for place in gone):x}"


def gone_places(field: str, units: str, count: int, mask: str) -> frozenset[int]:
    """Which of `count` units are gone.

    Raises:
        ValueError: units are gone that never were; says so of that field of the configuration.
    """
    number = int(mask, 16)
    if number < 0 or number.bit_length() > count:
        raise ValueError(f"{field} speaks of {units} that are gone and never were")
    # Digit by digit: shifting a long number anew for each unit takes its length squared.
    return frozenset(place for place, bit in enumerate(reversed(f"{number:b}")) if bit == "1")


def require_layers(field: str, layers: Collection[str], count: int) -> None:
    """See that a configuration speaks only of layers that there are.

    Raises:
        ValueError: it speaks of another.
    """
    if strangers := set(layers) - {str(number) for number in range(count)}:
        raise ValueError(
            f"{field} speaks of layer {min(strangers)}, and there are layers 0 to {count - 1}"
        )


def contradiction(field: str, units: str, count: int, gone: int, there: int) -> ValueError:
    """That a configuration says two things of how many units a layer has."""
    return ValueError(
        f"{field} speaks of {count} {units} of which {gone} are gone, where the configuration "
        f"gives {there}"
    )


def teach_rebuilding(base_class: type[Any], rebuilds: Collection[Rebuild]) -> None:
    """Let a model class build its layers as the configuration remembers them.

    Idempotent. transformers copies the weights of a checkpoint in after building.
    """
    if "init_of_transformers" in vars(base_class):
        return
    original = base_class.init_of_transformers = base_class.__init__

    @functools.wraps(original)
    def build(self: Any, config: Any, *rest: Any, **named: Any) -> None:
        original(self, config, *rest, **named)
        for rebuild in rebuilds:
            rebuild(self, config)

    base_class.__init__ = build
