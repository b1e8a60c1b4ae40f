"""Several slots in one logit vector: intent classification (SUPERB IC)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from hibprune.data import TargetFields
from hibprune.records.measurements import Evaluation
from hibprune.tasks.base import Choice, TaskBase
from hibprune.tasks.classification import accuracy
from hibprune.tasks.labels import class_number, labels_fault, problem_fault
from hibprune.tasks.vocabulary import (
    Batch,
    Encoded,
    Probabilities,
    Target,
    Vocabulary,
    label_probabilities,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

FLUENT_SPEECH_COMMANDS: dict[str, tuple[str, ...]] = {
    "action": ("change language", "activate", "deactivate", "increase", "decrease", "bring"),
    "object": (
        "none",
        "music",
        "lights",
        "volume",
        "heat",
        "lamp",
        "newspaper",
        "juice",
        "socks",
        "Chinese",
        "Korean",
        "English",
        "German",
        "shoes",
    ),
    "location": ("none", "kitchen", "bedroom", "washroom"),
}
"""The order of s3prl and so of the SUPERB checkpoints: by first appearance in its training data."""


class IntentClassification(TaskBase):
    """A clip counts as right when every slot is.

    `slots` lists each slot's labels in the order of the model's logits, slot after slot; the
    default is that of the SUPERB checkpoints: action 0–5, object 6–19, location 20–23. A model
    whose own `id2label` has them in another order is refused; one label may stand in two slots.
    """

    kind: Literal["intent-classification"]
    slots: dict[str, tuple[str, ...]] = Field(default=FLUENT_SPEECH_COMMANDS, min_length=1)

    model_class: ClassVar[str] = "AutoModelForAudioClassification"
    export_task: ClassVar[str] = "audio-classification"
    onnx_class: ClassVar[str] = "ORTModelForAudioClassification"
    higher_is_better: ClassVar[bool] = True

    @model_validator(mode="after")
    def _labels_are_distinct(self) -> IntentClassification:
        for name, labels in self.slots.items():
            if len(set(labels)) != len(labels) or not labels:
                raise ValueError(f"slot '{name}' needs labels, each of them once")
        return self

    @property
    def fields(self) -> TargetFields:
        return TargetFields("slots", tuple(self.slots))

    def _ranges(self) -> Iterator[tuple[str, int, int]]:
        start = 0
        for name, labels in self.slots.items():
            yield name, start, start + len(labels)
            start += len(labels)

    @property
    def metric_name(self) -> str:
        return "accuracy"

    @property
    def _outputs(self) -> list[tuple[str, str]]:
        """Slot and label of each of the model's logits."""
        return [(slot, label) for slot, labels in self.slots.items() for label in labels]

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        wanted, configuration = self._outputs, vocabulary.configuration
        if len(vocabulary.labels) != len(wanted):
            return (
                f"its {len(vocabulary.labels)} logits are not the {len(wanted)} of task.slots "
                "together"
            )
        if configuration is None:
            return None
        return (
            problem_fault(configuration)
            or labels_fault(configuration, vocabulary.outputs)
            or order_fault(wanted, vocabulary.labels)
        )

    def vocabulary_note(self, vocabulary: Vocabulary) -> str | None:
        return strange_names(self._outputs, vocabulary.labels)

    def named(self, target: Target, vocabulary: Vocabulary) -> Target:
        numbers = self.encode(target, vocabulary)
        return {
            name: labels[number]
            for (name, labels), number in zip(self.slots.items(), numbers, strict=True)
        }

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        if not isinstance(target, dict):
            raise ValueError(f"'{target}' is one label where slots {', '.join(self.slots)} are due")
        numbers = []
        for name, labels in self.slots.items():
            try:
                numbers.append(class_number(target[name], labels))
            except ValueError as error:
                raise ValueError(f"slot '{name}': {error}") from error
        return tuple(numbers)

    def choices(self, logits: Tensor, batch: Batch) -> tuple[Choice, ...]:
        """A choice for each slot."""
        import torch

        every = torch.ones(len(logits), 1, dtype=torch.bool, device=logits.device)
        slots = self._ranges()
        return tuple(Choice(logits[:, None, start:end], every) for _, start, end in slots)

    def loss_of(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        """Sum over slots of the cross-entropy within the slot's logits, as SUPERB trains it."""
        import torch
        from torch.nn import functional

        targets = torch.tensor(batch.targets, device=logits.device)
        losses = [
            functional.cross_entropy(logits[:, start:end], targets[:, slot], reduction="none")
            for slot, (_, start, end) in enumerate(self._ranges())
        ]
        return torch.stack(losses).sum(0)

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        return {
            name: self.slots[name][int(output[start:end].argmax())]
            for name, start, end in self._ranges()
        }

    def probabilities(self, output: np.ndarray, vocabulary: Vocabulary) -> Probabilities:
        return {
            name: label_probabilities(output[start:end], self.slots[name])
            for name, start, end in self._ranges()
        }

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        return accuracy(predictions, references)


def order_fault(wanted: Sequence[tuple[str, str]], labels: Sequence[str]) -> str | None:
    """Why a model's own labels say that its logits come in another order than the slots', or None.

    `wanted` holds slot and label of each logit. Labels that are none of the slots' say nothing.
    """
    spellings = [_spellings(slot, label) for slot, label in wanted]
    everywhere = frozenset().union(*spellings)
    for number, (label, own) in enumerate(zip(labels, spellings, strict=True)):
        if _plain(label) not in own and _plain(label) in everywhere:
            slot, due = wanted[number]
            return (
                f"its config.json calls output {number} '{label}' (id2label), task.slots calls it "
                f"'{due}' of {slot}: list task.slots in the order of the model's outputs"
            )
    return None


def strange_names(wanted: Sequence[tuple[str, str]], labels: Sequence[str]) -> str | None:
    """A line when a model's labels are others than the slots', so that their order is unknown.

    None where they are the same, or none but numbers, as transformers makes them up.
    """
    for number, ((slot, due), label) in enumerate(zip(wanted, labels, strict=True)):
        made_up = re.fullmatch(r"(LABEL_)?[0-9]+", label)
        if not made_up and _plain(label) not in _spellings(slot, due):
            return (
                f"its config.json calls output {number} '{label}' (id2label), task.slots calls it "
                f"'{due}' of {slot}: it is scored as task.slots says; see that the order is right"
            )
    return None


def _spellings(slot: str, label: str) -> frozenset[str]:
    """How a label may be written: alone, or with its slot before or behind."""
    return frozenset(map(_plain, (label, slot + label, label + slot)))


def _plain(label: str) -> str:
    """The letters and digits of a label, in small letters."""
    return "".join(letter for letter in label.casefold() if letter.isalnum())
