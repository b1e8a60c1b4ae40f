"""One label per clip: keyword spotting and speaker identification; what labels have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from hibprune.data import TargetFields
from hibprune.records.base import Interval
from hibprune.records.measurements import Evaluation
from hibprune.records.statistics import wilson_interval
from hibprune.tasks.base import TaskBase
from hibprune.tasks.labels import class_number, labels_fault, problem_fault, repeated_label
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


class Classification(TaskBase):
    """What tasks with one label per clip or text share: cross-entropy and accuracy."""

    model_class: ClassVar[str] = "AutoModelForAudioClassification"
    export_task: ClassVar[str] = "audio-classification"
    onnx_class: ClassVar[str] = "ORTModelForAudioClassification"
    higher_is_better: ClassVar[bool] = True

    @property
    def fields(self) -> TargetFields:
        return TargetFields("label", medium=self.medium)

    @property
    def metric_name(self) -> str:
        return "accuracy"

    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        configuration = vocabulary.configuration
        fault = None
        if configuration is not None:
            fault = problem_fault(configuration) or labels_fault(configuration, vocabulary.outputs)
        if fault is None and len(vocabulary.labels) < 2:
            fault = "it has a single class"
        return fault or repeated_label(vocabulary.labels)

    def named(self, target: Target, vocabulary: Vocabulary) -> Target:
        return vocabulary.labels[class_number(str(target), vocabulary.labels)]

    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        return (class_number(str(target), vocabulary.labels),)

    def loss_of(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        import torch
        from torch.nn import functional

        classes = torch.tensor([target[0] for target in batch.targets], device=logits.device)
        return functional.cross_entropy(logits, classes, reduction="none")

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        return vocabulary.labels[int(output.argmax())]

    def probabilities(self, output: np.ndarray, vocabulary: Vocabulary) -> Probabilities:
        return label_probabilities(output, vocabulary.labels)

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
