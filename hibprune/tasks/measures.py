"""Ways to measure a model on labelled clips: a task's own metric, and cheaper ones for curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.records.measurements import Evaluation

if TYPE_CHECKING:
    from hibprune.tasks.base import Target, TaskBase, Vocabulary


class Measure(ABC):
    """A metric, and what a model has to say about a clip for it."""

    @abstractmethod
    def answers(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], targets: Sequence[Target]
    ) -> list[Any]:
        """What the model says about each clip of a batch, clips of equal length."""

    @abstractmethod
    def evaluate(self, answers: Sequence[Any], references: Sequence[Target]) -> Evaluation:
        """The metric over all clips, with its 95 % interval."""


@dataclass(frozen=True)
class OwnMetric(Measure):
    """The task's metric, by the code that measures it everywhere else."""

    task: TaskBase
    vocabulary: Vocabulary

    def answers(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], targets: Sequence[Target]
    ) -> list[Any]:
        """The task's predictions.

        Raises:
            UserError: the model gives out numbers that are not finite.
        """
        outputs = self.task.torch_predict(model)(inputs)
        if not np.isfinite(outputs).all():
            raise UserError("the model's outputs are not finite: its weights are damaged")
        return [self.task.decode(output, self.vocabulary) for output in outputs]

    def evaluate(self, answers: Sequence[Any], references: Sequence[Target]) -> Evaluation:
        return self.task.evaluate(answers, references, self.vocabulary)
