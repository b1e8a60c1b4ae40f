"""Several slots in one logit vector: intent classification (SUPERB IC)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.data import TargetFields
from hibprune.records import Evaluation
from hibprune.tasks.base import Batch, Encoded, Target, TaskBase, Vocabulary
from hibprune.tasks.classification import accuracy, class_number


class IntentClassification(TaskBase):
    """A clip counts as right when every slot is.

    `slots` says how many classes each slot has, in the order of the model's logits; the default
    is that of the SUPERB checkpoints: action 0–5, object 6–19, location 20–23.
    """

    kind: Literal["intent-classification"]
    slots: dict[str, int] = Field(default={"action": 6, "object": 14, "location": 4}, min_length=1)

    model_class: ClassVar[str] = "AutoModelForAudioClassification"
    export_task: ClassVar[str] = "audio-classification"
    onnx_class: ClassVar[str] = "ORTModelForAudioClassification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @model_validator(mode="after")
    def _slots_have_classes(self) -> IntentClassification:
        for name, classes in self.slots.items():
            if classes < 1:
                raise ValueError(f"slot '{name}' needs at least one class, not {classes}")
        return self

    @property
    def fields(self) -> TargetFields:
        return TargetFields("slots", tuple(self.slots))

    def _ranges(self) -> Iterator[tuple[str, int, int]]:
        ends = np.cumsum([0, *self.slots.values()])
        for name, (start, end) in zip(self.slots, pairwise(ends), strict=True):
            yield name, int(start), int(end)

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        wanted = sum(self.slots.values())
        if len(vocabulary.labels) == wanted:
            return None
        return f"its {len(vocabulary.labels)} logits are not the {wanted} of task.slots together"

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        if not isinstance(target, dict):
            raise ValueError(f"'{target}' is one label where slots {', '.join(self.slots)} are due")
        numbers = []
        for name, start, end in self._ranges():
            try:
                numbers.append(class_number(target[name], vocabulary.labels[start:end]))
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

    def decode(self, logits: np.ndarray, vocabulary: Vocabulary) -> Target:
        return {
            name: vocabulary.labels[start + int(logits[start:end].argmax())]
            for name, start, end in self._ranges()
        }

    def evaluate(self, predictions: Sequence[Target], references: Sequence[Target]) -> Evaluation:
        return accuracy(predictions, references)
