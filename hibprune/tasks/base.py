"""What a task is: how far a model is from the truth, and how its outputs become a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.data import TargetFields
from hibprune.records import Evaluation

Target = str | dict[str, str]
"""What is true of a clip: a label, a text, or a label per slot."""

Encoded = tuple[int, ...]
"""A target in the model's own numbers: class, one class per slot, or tokens."""


@dataclass(frozen=True)
class Batch:
    """Clips for one forward pass.

    `inputs` are the model's keyword arguments; `frames` holds each clip's number of encoder frames.
    """

    ids: tuple[str, ...]
    inputs: dict[str, Tensor]
    targets: tuple[Encoded, ...]
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Vocabulary:
    """What a model's output numbers mean: class names, or a tokenizer for text."""

    labels: tuple[str, ...]
    tokenizer: Any = None


class TaskBase(BaseModel, ABC):
    """One kind of task. Fields are what a recipe may say about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_class: ClassVar[str]
    """The Auto class of transformers that loads its models."""
    export_task: ClassVar[str]
    """What optimum's exporter calls it."""
    onnx_class: ClassVar[str]
    """The class of optimum that runs its exported models."""
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @property
    @abstractmethod
    def fields(self) -> TargetFields:
        """What the data must say about each clip."""

    @abstractmethod
    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        """Why a model with this vocabulary cannot serve the task, or None when it can."""

    @abstractmethod
    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        """A target in the model's numbers.

        Raises:
            ValueError: the model has no number for it; the message says what it does not know.
        """

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Task loss of each clip, shape (batch,), with gradients."""

    @abstractmethod
    def decode(self, logits: np.ndarray, vocabulary: Vocabulary) -> Target:
        """What the model says about one clip, from its logits."""

    @abstractmethod
    def evaluate(self, predictions: Sequence[Target], references: Sequence[Target]) -> Evaluation:
        """The task's metric with its 95 % interval."""
