"""One label per clip: keyword spotting and speaker identification; what labels have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from hibprune.data import TargetFields
from hibprune.errors import did_you_mean
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import wilson_interval
from hibprune.tasks.base import Batch, Encoded, Target, TaskBase, Vocabulary


class Classification(TaskBase):
    """What tasks with one label per clip or text share: cross-entropy and accuracy."""

    model_class: ClassVar[str] = "AutoModelForAudioClassification"
    export_task: ClassVar[str] = "audio-classification"
    onnx_class: ClassVar[str] = "ORTModelForAudioClassification"
    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    @property
    def fields(self) -> TargetFields:
        return TargetFields("label", medium=self.medium)

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        return None if len(vocabulary.labels) > 1 else "it has a single class"

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        return (class_number(str(target), vocabulary.labels),)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        logits = model(**batch.inputs).logits
        classes = torch.tensor([target[0] for target in batch.targets], device=logits.device)
        return functional.cross_entropy(logits.float(), classes, reduction="none")

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        return vocabulary.labels[int(output.argmax())]

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        return accuracy(predictions, references)


class KeywordSpotting(Classification):
    """Which command word a clip holds (SUPERB KS)."""

    kind: Literal["keyword-spotting"]


class SpeakerIdentification(Classification):
    """Who of a closed set speaks (SUPERB SID)."""

    kind: Literal["speaker-identification"]


def class_number(label: str, labels: Sequence[str]) -> int:
    """The place of a label among a model's classes.

    Raises:
        ValueError: the model has no such class; suggests the nearest.
    """
    if label in labels:
        return labels.index(label)
    shown = ", ".join(labels[:12]) + (", …" if len(labels) > 12 else "")
    raise ValueError(
        f"the model has no label '{label}'{did_you_mean(label, labels)}; it knows {shown}"
    )


def accuracy(predictions: Sequence[Target], references: Sequence[Target]) -> Evaluation:
    """Share of clips or texts that are right, with Wilson's 95 % interval."""
    wrong = tuple(float(p != r) for p, r in zip(predictions, references, strict=True))
    right = wrong.count(0.0)
    return Evaluation(
        metric="accuracy",
        value=right / len(references),
        interval=Interval(*wilson_interval(right, len(references))),
        n=len(references),
        higher_is_better=True,
        errors=wrong,
        counted=(1.0,) * len(wrong),
    )
