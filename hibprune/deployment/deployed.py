"""An exported model as a deployer has it: graphs and settings in a directory, no PyTorch model.

Directories come from strangers too: what the graphs take and give out is held against what the
settings beside them say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from torch import Tensor

from hibprune.data import ContentFault, DurationLimits
from hibprune.errors import UserError
from hibprune.execution.files import open_bounded, read_fault
from hibprune.execution.libraries import quiet_libraries
from hibprune.execution.output import RECIPE_FILE
from hibprune.execution.runtime import MAX_GRAPH_BYTES, ONNX_DIRECTORY, Predict
from hibprune.models.architecture import read_configuration
from hibprune.models.checkpoint import needed_files
from hibprune.models.parts import plain_faults, pretrained
from hibprune.models.preprocessing import Preprocessor, class_names, load_preprocessor
from hibprune.models.staging import StagedCheckpoint
from hibprune.recipe import load_recipe
from hibprune.records.manifest import FILE_NAME
from hibprune.records.medium import SOUND, Medium
from hibprune.records.precision import Precision, graph_name
from hibprune.tasks import Target, TaskBase, Vocabulary

LONGEST_NAMED = 100


@dataclass(frozen=True)
class Deployment:
    """An exported model with what it needs to be fed and understood."""

    directory: Path
    task: TaskBase
    limits: DurationLimits
    """The clips that the recipe accepts."""
    predict: Predict
    preprocessor: Preprocessor
    vocabulary: Vocabulary
    staged: StagedCheckpoint
    """What it was opened from, there while it is used."""

    def answer(self, argument: str) -> Target:
        """What the model says of a sound file or a text.

        Raises:
            ContentFault: the argument cannot be used.
            UserError: the model gives out what cannot be an answer.
        """
        return self.said(self.output(self.prepared(argument)))

    def prepared(self, argument: str) -> dict[str, Tensor]:
        """What the graphs take of a sound file or a text. Raises ContentFault."""
        content = self.preprocessor.content(argument)
        return self.preprocessor.inputs(self.preprocessor.read(content, self.limits))

    @property
    def gives_logits(self) -> bool:
        """Whether the graphs give out logits, not the tokens that a decoder says."""
        return self.task.generation is None

    def output(self, inputs: dict[str, Tensor]) -> np.ndarray:
        """What the model gives out for a batch of one. Raises UserError as `answer`."""
        with _told_of(self.staged, f"{self.directory}: its model cannot be run"):
            outputs = np.asarray(self.predict(inputs))
        fault = self._output_fault(outputs)
        if fault is not None:
            raise UserError(f"{self.directory}: its model {fault}: not as hibprune exports one")
        return outputs

    def said(self, outputs: np.ndarray) -> Target:
        """What an output says, in the task's words. Raises UserError where none can be read."""
        with plain_faults(f"{self.directory}: its tokenizer cannot read what its model says"):
            return self.task.decode(outputs[0], self.vocabulary)

    def _output_fault(self, outputs: np.ndarray) -> str | None:
        shape = "×".join(map(str, outputs.shape)) or "a single number"
        found = f"gives out {outputs.dtype.name} of shape {shape}"
        if self.task.fields.kind != "text":
            classes = len(self.vocabulary.labels)
            if outputs.shape != (1, classes):
                return f"{found} where the labels of config.json want 1×{classes}"
            kind: type[np.generic] = np.floating
        else:
            if outputs.ndim not in (2, 3) or outputs.shape[0] != 1 or not outputs.shape[-1]:
                return f"{found} for one {self.task.medium.one}"
            # Tokens that a decoder says, or a number for each token at every frame.
            kind = np.integer if outputs.ndim == 2 else np.floating
        if not np.issubdtype(outputs.dtype, kind):
            return f"{found}, which are no {'tokens' if kind is np.integer else 'logits'}"
        return None if np.isfinite(outputs).all() else "gives out numbers that are not finite"


def told(
    directory: str, arguments: Sequence[str], precision: Precision = "fp32"
) -> Iterator[dict[str, Any]]:
    """Of each argument, what the model says of it or why it cannot be used; first, nothing.

    Raises:
        UserError: the directory is not that of a finished run, or its model is not a sound one.
    """
    deployment = opened(Path(directory), precision)
    task = deployment.task
    yield {}
    for argument in arguments:
        named = _named(argument, task.medium)
        try:
            said = deployment.answer(argument)
        except ContentFault as fault:
            yield {"named": named, "fault": fault.reason}
            continue
        yield {
            "argument_name": task.medium.argument,
            "argument": argument,
            "named": named,
            "prediction": said,
            "is_transcript": task.fields.kind == "text",
        }


def opened(directory: Path, precision: Precision) -> Deployment:
    """A variant of a finished run by its precision, for the task that its recipe names.

    Raises:
        UserError: the directory is not that of a finished run, or its model is not a sound one.
    """
    quiet_libraries()
    recipe = load_recipe(_file(directory, RECIPE_FILE)).recipe
    return _open(directory, recipe.task, recipe.validation.durations, precision)


def _named(argument: str, medium: Medium) -> str:
    """A file's path as given; a text in quotes, on one line and not all of a long one."""
    if medium is SOUND:
        return argument
    return f"'{shorten(argument, LONGEST_NAMED, placeholder=' …')}'"


def _file(directory: Path, name: str) -> Path:
    """A file of the directory, seen to be one that can be opened."""
    path = directory / name
    try:
        open_bounded(path, MAX_GRAPH_BYTES).close()
    except FileNotFoundError as error:
        raise UserError(
            f"{directory}: no {name} in it: not the directory of a finished run"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {read_fault(error)}") from error
    return path


def _open(
    directory: Path, task: TaskBase, limits: DurationLimits, precision: Precision
) -> Deployment:
    graphs = {graph: f"{ONNX_DIRECTORY}/{graph_name(graph, precision)}" for graph in task.graphs}
    beside = [f"{ONNX_DIRECTORY}/{name}" for name in task.beside_graphs]
    # The manifest is written last: without it, the files may be half of two models.
    for name in (*graphs.values(), *beside, "config.json", FILE_NAME):
        _file(directory, name)
    files = [*needed_files(directory, task), *beside]
    staged = StagedCheckpoint(directory, str(directory), files)
    for graph, name in graphs.items():
        # Under the name of fp32, so that all are run by one code.
        staged.link(name, f"{ONNX_DIRECTORY}/{graph}")
    config = read_configuration(staged, task)
    writes = task.fields.kind == "text"
    tokenizer = pretrained("AutoTokenizer", staged) if writes else None
    with plain_faults(f"{directory}: cannot read its config.json", staged):
        vocabulary = Vocabulary(class_names(config), tokenizer, configuration=config)
        # What a decoder is told stands with its graphs, and is theirs to read.
        fault = task.vocabulary_fault(vocabulary) if task.generation is None else None
    if fault is not None:
        raise UserError(f"{directory}: its model cannot serve its recipe's task: {fault}")
    preprocessor = load_preprocessor(task.medium, config, staged)
    with _told_of(staged, f"{directory}: its model cannot be opened"):
        predict = task.onnx_predict(staged.directory, "cpu")
    return Deployment(directory, task, limits, predict, preprocessor, vocabulary, staged)


@contextmanager
def _told_of(staged: StagedCheckpoint, place: str) -> Iterator[None]:
    """One line for whatever goes wrong with a staged model, with the name it has elsewhere."""
    try:
        with plain_faults(place, staged):
            yield
    except UserError as error:
        raise UserError(staged.named(str(error))) from error
