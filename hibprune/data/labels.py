"""Labels in the data's words and in the model's: the names that a recipe gives them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

from pydantic import BeforeValidator, Field

from hibprune.data.source import Source
from hibprune.data.utterances import Listing, TargetFields

WHOLE_NUMBER = re.compile("-?(0|[1-9][0-9]{0,8})")


def by_label(names: object) -> object:
    """Names as a mapping, of a list by number.

    Raises ValueError over what YAML makes of words such as yes and no.
    """
    mapping = dict(enumerate(names)) if isinstance(names, list) else names
    words = [*mapping, *mapping.values()] if isinstance(mapping, dict) else []
    for word in words:
        if isinstance(word, bool):
            raise ValueError(
                f"holds {str(word).lower()}, which YAML makes of a bare yes, no, on or off: "
                "write it in quotes"
            )
    return mapping


Names = dict[int | str, int | str]
LabelNames = Annotated[Names, BeforeValidator(by_label, json_schema_input_type=Names | list[str])]
"""The model's label for the data's, by number or by name."""


class LabelledSource(Source):
    """A source whose labels may have other names than the model's."""

    label_names: LabelNames = Field(default_factory=dict)

    def renamed(self, listing: Listing, fields: TargetFields) -> Listing:
        """The listing with the model's names for its labels; transcripts stay as they are."""
        if fields.kind == "text" or not self.label_names:
            return listing
        found = []
        for utterance in listing.utterances:
            target = utterance.target
            if isinstance(target, dict):
                target = {slot: self.model_label(label) for slot, label in target.items()}
            elif target is not None:
                target = self.model_label(target)
            found.append(replace(utterance, target=target))
        return replace(listing, utterances=found)

    def model_label(self, label: str, number: int | None = None) -> str:
        """The model's name for a label, which may have a class number beside its name."""
        if number is None and WHOLE_NUMBER.fullmatch(label):
            number = int(label)
        by_name = self.label_names.get(label, label)
        return str(by_name if number is None else self.label_names.get(number, by_name))
