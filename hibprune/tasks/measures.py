"""Ways to measure a model on labelled clips: a task's own metric, and cheaper ones for curves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hibprune.errors import UserError
from hibprune.records.measurements import Evaluation
from hibprune.tasks.vocabulary import Target, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hibprune.execution.runtime import Predict


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


class Predicting(Protocol):
    """What a task's own metric needs of the task."""

    def torch_predict(self, model: PreTrainedModel) -> Predict: ...

    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target: ...

    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation: ...


@dataclass(frozen=True)
class OwnMetric(Measure):
    """The task's metric, by the code that measures it everywhere else."""

    task: Predicting
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
        evaluation = self.task.evaluate(answers, references, self.vocabulary)
        return evaluation.model_copy(update={"constant": constant_answer(answers)})


def constant_answer(answers: Sequence[Target]) -> str | None:
    """What a model said of every input, where that was the same of several; None otherwise."""
    said = set(map(answer_text, answers))
    return said.pop() if len(said) == 1 < len(answers) else None


def answer_text(answer: Target) -> str:
    """A label or a text as it is; of several slots, what stands in each."""
    if isinstance(answer, str):
        return answer
    return ", ".join(f"{slot}={label}" for slot, label in answer.items())
