"""Labels as text: whole numbers in words, and a recipe's own names for them."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import Field, StrictInt, StrictStr

from hibprune.errors import UserError

Name = Annotated[StrictStr, Field(min_length=1)]

LabelNames = tuple[Name, ...] | dict[StrictInt | Name, StrictInt | Name]
"""The model's label for each of the data's: by number in a list, by number or name in a mapping.

Strict, since YAML reads a bare yes, no, on or off as true or false.
"""

WHOLE_NUMBER = re.compile("-?(0|[1-9][0-9]{0,8})")


def label_text(value: object, column: str, place: str) -> str:
    """A label as a file holds it, as text: a whole number is one, too.

    Raises UserError naming `place`.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(
            f"{place}: '{column}' is {json.dumps(value)}; write it as text or a whole number"
        )
    return value


def renamed(label: str, names: LabelNames, place: str) -> str:
    """The model's name for a label of the data; the label itself where a mapping has none for it.

    Raises UserError naming `place` when `names` is a list that has no entry of this number.
    """
    if isinstance(names, dict):
        number = int(label) if WHOLE_NUMBER.fullmatch(label) else None
        return str(names.get(label, label if number is None else names.get(number, label)))
    if not names:
        return label
    if not WHOLE_NUMBER.fullmatch(label):
        raise UserError(
            f"{place}: label '{label}' is no number, but label_names is a list, of the names of "
            "0, 1, 2, …: make it a mapping from label to name"
        )
    if not 0 <= int(label) < len(names):
        raise UserError(
            f"{place}: label {label}: label_names has names for 0 to {len(names) - 1} only"
        )
    return names[int(label)]
