"""What a task is: how far a model is from the truth, and how its outputs become a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hibprune.data import TargetFields
from hibprune.execution.runtime import (
    ONNX_DIRECTORY,
    OnnxModel,
    Outputs,
    Predict,
    Timed,
    guarded,
    onnx_model,
    onnx_predict,
    onnx_session,
    torch_predict,
)
from hibprune.records.base import Settings
from hibprune.records.generation import GenerationSettings
from hibprune.records.measurements import Evaluation
from hibprune.records.medium import SOUND, Medium
from hibprune.records.transcripts import TranscriptRules
from hibprune.tasks.measures import Measure, OwnMetric
from hibprune.tasks.vocabulary import Batch, Encoded, Probabilities, Target, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Choice:
    """Logits (batch, places, classes) that one choice each is made by, where `counts` is true.

    `counts` (batch, places) is false on padding.
    """

    logits: Tensor
    counts: Tensor


class TaskBase(Settings, ABC):
    """One kind of task. Fields are what a recipe may say about it."""

    medium: ClassVar[Medium] = SOUND
    """What goes in."""
    model_class: ClassVar[str]
    """The Auto class of transformers that loads its models."""
    export_task: ClassVar[str]
    """What optimum's exporter calls it."""
    onnx_class: ClassVar[str]
    """The class of optimum that runs its exported models."""
    graphs: ClassVar[tuple[str, ...]] = ("model.onnx",)
    """The files its exported models consist of, the one that runs first in front."""
    beside_graphs: ClassVar[tuple[str, ...]] = ()
    """Other files that are looked for beside them."""
    higher_is_better: ClassVar[bool]
    curve_metric: ClassVar[str | None] = None
    """A metric that costs less than the task's own, where curves want hundreds of evaluations."""

    @property
    @abstractmethod
    def fields(self) -> TargetFields:
        """What the data must say about each clip or text."""

    @property
    def exported_files(self) -> tuple[str, ...]:
        """All that an exported model consists of, in a folder of its own."""
        return (*self.graphs, *self.beside_graphs)

    @property
    def generation(self) -> GenerationSettings | None:
        """What a decoder is told; None where the model has none."""
        return None

    @property
    @abstractmethod
    def metric_name(self) -> str:
        """What the task's metric is called."""

    @abstractmethod
    def vocabulary_fault(self, vocabulary: Vocabulary) -> str | None:
        """Why a model with this vocabulary cannot serve the task, or None when it can."""

    def vocabulary_note(self, vocabulary: Vocabulary) -> str | None:
        """What is odd about a vocabulary that serves the task all the same, or None."""
        return None

    def transcript_rules(self, vocabulary: Vocabulary) -> TranscriptRules | None:
        """By which rules transcripts are compared; None for a task without."""
        return None

    def named(self, target: Target, vocabulary: Vocabulary) -> Target:
        """A target in the model's own words: its label where the data give its number.

        Raises:
            ValueError: the model does not know it.
        """
        return target

    @abstractmethod
    def encode(self, target: Target, vocabulary: Vocabulary) -> Encoded:
        """A target in the model's numbers.

        Raises:
            ValueError: the model has no number for it; the message says what it does not know.
        """

    def references_fault(self, references: Sequence[Target], vocabulary: Vocabulary) -> str | None:
        """Why the metric is not defined for these references, or None when it is."""
        return None

    def references_note(self, references: Sequence[Target], vocabulary: Vocabulary) -> str | None:
        """Why the metric says little of these references, and the remedy; None when it does."""
        return None

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Task loss of each clip or text, shape (batch,), with gradients."""
        return self.loss_of(model, self.logits(model, batch), batch)

    def logits(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What a model gives out for a batch, with gradients, in float32.

        Raises:
            AttributeError: it gives out no logits.
        """
        logits: Tensor = model(**batch.inputs).logits.float()
        return logits

    @abstractmethod
    def loss_of(self, model: PreTrainedModel, logits: Tensor, batch: Batch) -> Tensor:
        """Task loss of each clip or text, shape (batch,), from the model's `logits`."""

    def choices(self, logits: Tensor, batch: Batch) -> tuple[Choice, ...]:
        """What a model chooses among, and where: one choice, made once for each clip or text."""
        import torch

        every = torch.ones(len(logits), 1, dtype=torch.bool, device=logits.device)
        return (Choice(logits[:, None], every),)

    def on_trial(self) -> TaskBase:
        """The task with as little to predict as shows whether a model can."""
        return self

    def deployed(self, model: PreTrainedModel) -> PreTrainedModel:
        """The same model with what must be saved with it, so that it predicts as it is measured."""
        return model

    def deployed_extractor(self, extractor: Any) -> Any:
        """The same feature extractor, giving out by itself all that the graphs take."""
        return extractor

    def decoded_tokens(self, references: Sequence[Target], vocabulary: Vocabulary) -> int | None:
        """How many tokens a decoder says for a reference of median length; None without one."""
        return None

    def torch_predict(self, model: PreTrainedModel) -> Predict:
        """Prediction under PyTorch: gives out what `decode` takes."""
        return torch_predict(model)

    def onnx_predict(self, directory: Path, device: str, threads: int | None = None) -> Predict:
        """Prediction under ONNX Runtime by the graphs in `directory`/onnx."""
        return self.onnx_model(directory, device, threads).predict

    def onnx_model(self, directory: Path, device: str, threads: int | None = None) -> OnnxModel:
        """The same, with what the first graph takes and says of itself."""
        path = directory / ONNX_DIRECTORY / self.graphs[0]
        session = onnx_session(path, device, threads)
        return onnx_model(guarded(onnx_predict(session), path), session)

    def torch_outputs(self, model: PreTrainedModel) -> Outputs:
        """All that parity compares, under PyTorch."""
        predict = self.torch_predict(model)
        return lambda inputs: {"logits": predict(inputs)}

    def onnx_outputs(self, directory: Path) -> Outputs:
        """All that parity compares, under ONNX Runtime on the CPU."""
        session = onnx_session(directory / ONNX_DIRECTORY / self.graphs[0], "cpu")
        predict = onnx_predict(session)
        return lambda inputs: {"logits": predict(inputs)}

    def onnx_timed(self, directory: Path, device: str, threads: int, tokens: int | None) -> Timed:
        """What the benchmark times: the same work for every model, whatever it predicts.

        `tokens` is how many a decoder says, where there is one.
        """
        predict = self.onnx_predict(directory, device, threads)
        return lambda inputs: {"model": partial(predict, inputs)}

    def measure(self, metric: str, vocabulary: Vocabulary) -> Measure:
        """The way to measure `metric`, which is `metric_name` or `curve_metric`."""
        return OwnMetric(self, vocabulary)

    @abstractmethod
    def decode(self, output: np.ndarray, vocabulary: Vocabulary) -> Target:
        """What the model says about one clip or text, from what `torch_predict` gave out for it."""

    def without_padding(self, output: np.ndarray, frames: int) -> np.ndarray:
        """The part of a clip's output in a padded batch that its own `frames` were made into."""
        return output

    def probabilities(self, output: np.ndarray, vocabulary: Vocabulary) -> Probabilities | None:
        """How sure the model is, from what `torch_predict` gave out; None where that is no logits.

        Of labels, all of them; of a transcript, the tokens it consists of.
        """
        return None

    @abstractmethod
    def evaluate(
        self, predictions: Sequence[Target], references: Sequence[Target], vocabulary: Vocabulary
    ) -> Evaluation:
        """The task's metric with its 95 % interval."""
