"""Labels in the data against the classes of a model, by name or by number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hibprune.errors import did_you_mean

NOT_ONE_LABEL = {
    "multi_label_classification": "several labels for one input",
    "regression": "a quantity, no label",
}
"""What else transformers trains a classifier for, by `problem_type`."""

NAMED = 12
"""Labels that a line names; of more, it says that there are more."""

WHOLE_NUMBER = re.compile("-?(0|[1-9][0-9]{0,8})")


def class_number(label: str, labels: Sequence[str]) -> int:
    """The place of a label among a model's classes; of a number, unless it is a label, the number.

    Raises:
        ValueError: the model has no such class; suggests the nearest.
    """
    if label in labels:
        return labels.index(label)
    shown = _listed(labels)
    if is_number(label):
        if any(map(is_number, labels)):
            raise ValueError(
                f"'{label}' is none of the model's labels, some of which are numbers, so that it "
                f"is not taken for a class by number, either: map it with label_names; it knows "
                f"{shown}"
            )
        if 0 <= int(label) < len(labels):
            return int(label)
        raise ValueError(
            f"the model has no class {label}, only 0 to {len(labels) - 1}: correct the label or "
            f"map it with label_names; it knows {shown}"
        )
    raise ValueError(
        f"the model has no label '{label}'{did_you_mean(label, labels)}; it knows {shown}"
    )


def is_number(label: str) -> bool:
    """Whether a label is a whole number as a program writes it."""
    return WHOLE_NUMBER.fullmatch(label) is not None


def labels_fault(configuration: Any, outputs: int | None) -> str | None:
    """Why the labels in a config.json are not one for each of the model's outputs, or None.

    The same label of two outputs is not looked for.
    """
    names: Mapping[int, object] = configuration.id2label
    classes = len(names) if outputs is None else outputs
    for number in range(classes):
        if number not in names:
            return (
                f"id2label in its config.json names {len(names)} classes from {min(names)} to "
                f"{max(names)}, but not {number}, and it has the classes 0 to {classes - 1}: "
                "correct it"
            )
    if len(names) > classes:
        return f"id2label in its config.json names {len(names)} classes, but it has {classes}"
    for number, name in sorted(names.items()):
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
            return (
                f"id2label in its config.json has no name for class {number}: "
                "give every class its label as text"
            )
    return _other_way_fault(configuration)


def _other_way_fault(configuration: Any) -> str | None:
    """Whether label2id says something else than id2label; None where it does not."""
    names = configuration.id2label
    for label, number in (configuration.label2id or {}).items():
        own = [one for one, name in names.items() if str(name) == str(label)]
        if own and str(number) not in map(str, own):
            return (
                f"its config.json contradicts itself: '{label}' is class {number} by label2id and "
                f"{own[0]} by id2label: correct the wrong one"
            )
    return None


def repeated_label(labels: Sequence[str]) -> str | None:
    """Why labels do not tell classes apart, or None when they do."""
    first: dict[str, int] = {}
    for number, label in enumerate(labels):
        if label in first:
            return (
                f"id2label in its config.json calls class {first[label]} and class {number} "
                f"'{label}': give each its own label"
            )
        first[label] = number
    return None


def problem_fault(configuration: Any) -> str | None:
    """Why a model was trained for something else than one label for each input, or None."""
    problem = configuration.problem_type
    if problem not in NOT_ONE_LABEL:
        return None
    return (
        f"its config.json says problem_type {problem}, {NOT_ONE_LABEL[problem]}: "
        "use a model trained for one label per input (single_label_classification)"
    )


@dataclass(frozen=True)
class Reading:
    """What a label in the data was read as: the model's `name` of a class and its `number`."""

    label: str
    name: str
    number: int

    @property
    def by_number(self) -> bool:
        """Whether the label is no name of the model's, but the number of a class."""
        return self.label != self.name


def readings_fault(readings: Collection[Reading]) -> str | None:
    """Why labels cannot be read in one way, or None when they can."""
    by_number = [one.label for one in readings if one.by_number]
    names = [one.label for one in readings if not one.by_number]
    if not by_number or not names:
        return None
    return (
        f"some labels are names ('{names[0]}'), others numbers of classes ('{by_number[0]}'): "
        "label all in one way or map them with label_names"
    )


def readings_note(readings: Collection[Reading]) -> str | None:
    """How labels were read where they could be read otherwise, or None where they could not."""
    by_number = {one.number: one.name for one in readings if one.by_number}
    if by_number:
        listed = _listed(f"{number} is '{name}'" for number, name in sorted(by_number.items()))
        return f"labels are numbers, taken for those of the model's classes: {listed}"
    otherwise = {
        one.name: one.number
        for one in readings
        if is_number(one.name) and int(one.name) != one.number
    }
    if otherwise:
        listed = _listed(f"'{name}' is class {number}" for name, number in otherwise.items())
        return f"labels are numbers, taken for the model's labels of that name: {listed}"
    return None


def _listed(parts: Iterable[str]) -> str:
    first = list(parts)
    return ", ".join(first[:NAMED]) + (", …" if len(first) > NAMED else "")
