"""What goes into a model, sound or text: the words for it, and lengths in its unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hibprune.records.base import Record, Settings

Unit = Literal["seconds", "tokens"]
MediumName = Literal["sound", "text"]


@dataclass(frozen=True)
class Medium:
    """A kind of input, with what people call it."""

    name: MediumName
    one: str
    many: str
    """One piece of it, and several."""
    unit: Unit
    argument: str
    """What `hibprune predict` is given of it."""
    variety: str
    """What a metric on some of it does not speak for."""
    preparation: str
    """What happens between the input and the model."""

    def counted(self, number: int) -> str:
        """`1 clip`, `30 texts`."""
        return f"1 {self.one}" if number == 1 else f"{number} {self.many}"


SOUND = Medium(
    name="sound",
    one="clip",
    many="clips",
    unit="seconds",
    argument="file",
    variety="microphones, noise and speakers",
    preparation="reading sound and extracting features",
)
TEXT = Medium(
    name="text",
    one="text",
    many="texts",
    unit="tokens",
    argument="text",
    variety="topics, styles and writers",
    preparation="splitting text into tokens",
)
MEDIA: dict[MediumName, Medium] = {medium.name: medium for medium in (SOUND, TEXT)}

SYMBOLS: dict[Unit, str] = {"seconds": "s", "tokens": "tokens"}
OF_SOMETHING: dict[Unit, str] = {"seconds": "s of sound", "tokens": "tokens of text"}
AS_INPUT: dict[Unit, str] = {"seconds": "s clip", "tokens": "tokens"}


class Length(Record):
    """How long an input is: seconds of sound, or tokens of text with the special ones."""

    value: int | float
    unit: Unit

    def __str__(self) -> str:
        """`2.5 s`, `64 tokens`."""
        return f"{self.value:g} {SYMBOLS[self.unit]}"

    @property
    def as_input(self) -> str:
        """An input of that length: `2.5 s clip`, `64 tokens`."""
        return f"{self.value:g} {AS_INPUT[self.unit]}"

    @property
    def of_medium(self) -> str:
        """`2.5 s of sound`, `64 tokens of text`."""
        return f"{self.value:g} {OF_SOMETHING[self.unit]}"

    @property
    def seconds(self) -> float | None:
        """The length in seconds; None for text, which takes no time of its own."""
        return float(self.value) if self.unit == "seconds" else None


class LengthSettings(Settings):
    """Lengths to work at: `seconds` for tasks on sound, `tokens` for tasks on text."""

    seconds: tuple[float, ...]
    tokens: tuple[int, ...]

    def lengths(self, medium: Medium) -> tuple[Length, ...]:
        """Those that count for a medium."""
        values = self.seconds if medium.unit == "seconds" else self.tokens
        return tuple(Length(value=value, unit=medium.unit) for value in values)
