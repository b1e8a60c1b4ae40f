"""Several slots in one logit vector: intent classification (SUPERB IC)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.data import TargetFields
from hibprune.records.measurements import Evaluation
from hibprune.tasks.base import Batch, Encoded, Target, TaskBase, Vocabulary
from hibprune.tasks.classification import accuracy, class_number

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
    default is that of the SUPERB checkpoints: action 0–5, object 6–19, location 20–23. The model's
    own `id2label` is not consulted: one label may stand in two slots.
    """

    kind: Literal["intent-classification"]
    slots: dict[str, tuple[str, ...]] = Field(default=FLUENT_SPEECH_COMMANDS, min_length=1)

    model_class: ClassVar[str] = "AutoModelForAudioClassification"
    export_task: ClassVar[str] = "audio-classification"
    onnx_class: ClassVar[str] = "ORTModelForAudioClassification"
    metric: ClassVar[str] = "accuracy"
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

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        wanted = sum(len(labels) for labels in self.slots.values())
        if len(vocabulary.labels) == wanted:
            return None
        return f"its {len(vocabulary.labels)} logits are not the {wanted} of task.slots together"

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

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Sum over slots of the cross-entropy within the slot's logits, as SUPERB trains it."""
        logits = model(**batch.inputs).logits.float()
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

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        return accuracy(predictions, references)
