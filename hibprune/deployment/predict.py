"""Runs an exported model on sound files or texts, as a deployer would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np

from hibprune.data import ContentFault, DurationLimits
from hibprune.errors import UserError
from hibprune.execution.output import RECIPE_FILE
from hibprune.execution.runtime import ONNX_DIRECTORY, Predict
from hibprune.models.architecture import read_configuration
from hibprune.models.checkpoint import needed_files
from hibprune.models.parts import plain_faults, pretrained
from hibprune.models.preprocessing import Preprocessor, class_names, load_preprocessor
from hibprune.models.staging import StagedCheckpoint
from hibprune.recipe import load_recipe
from hibprune.records.manifest import FILE_NAME
from hibprune.records.medium import SOUND, Medium
from hibprune.tasks import Target, TaskBase, Vocabulary

LONGEST_NAMED = 100


@dataclass(frozen=True)
class Deployment:
    """An exported model with what it needs to be fed and understood; no PyTorch model."""

    predict: Predict
    preprocessor: Preprocessor
    vocabulary: Vocabulary
    staged: StagedCheckpoint
    """What it was opened from, there while it is used."""

    def output(self, argument: str, limits: DurationLimits) -> np.ndarray:
        """What the model gives out for a sound file or a text. Raises ContentFault."""
        reading = self.preprocessor.read(self.preprocessor.content(argument), limits)
        return np.asarray(self.predict(self.preprocessor.inputs(reading))[0])


@dataclass(frozen=True)
class Answer:
    """What the model says of one argument: a label, a text, or a label per slot."""

    argument: str
    medium: Medium
    prediction: Target

    @property
    def named(self) -> str:
        """The argument as a line names it."""
        return _named(self.argument, self.medium)


def answers(directory: Path, arguments: Sequence[str]) -> Iterator[Answer]:
    """What the exported model says of each argument: a sound file, or a text for tasks on text.

    Raises:
        UserError: the directory is not that of a finished run; or, once the others are done, a line
            for each argument that cannot be used.
    """
    _require_files(directory, [RECIPE_FILE])
    recipe = load_recipe(directory / RECIPE_FILE).recipe
    exported = [f"{ONNX_DIRECTORY}/{name}" for name in recipe.task.exported_files]
    _require_files(directory, [*exported, "config.json", FILE_NAME])
    deployment = _open(directory, recipe.task)
    faults = []
    for argument in arguments:
        try:
            output = deployment.output(argument, recipe.validation.durations)
        except ContentFault as fault:
            faults.append(f"{_named(argument, recipe.task.medium)}: {fault.reason}")
            continue
        prediction = recipe.task.decode(output, deployment.vocabulary)
        yield Answer(argument, recipe.task.medium, prediction)
    if faults:
        raise UserError("\n".join(faults))


def _named(argument: str, medium: Medium) -> str:
    """A file's path as given; a text in quotes, on one line and not all of a long one."""
    if medium is SOUND:
        return argument
    return f"'{shorten(argument, LONGEST_NAMED, placeholder=' …')}'"


def _require_files(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory}: no {name} in it: not the directory of a finished run")


def _open(directory: Path, task: TaskBase) -> Deployment:
    beside = [f"{ONNX_DIRECTORY}/{name}" for name in task.beside_graphs]
    files = [*needed_files(directory, task), *beside]
    staged = StagedCheckpoint(directory, str(directory), files)
    for graph in task.graphs:
        staged.link(f"{ONNX_DIRECTORY}/{graph}")
    try:
        predict = task.onnx_predict(staged.directory, "cpu")
    except UserError as error:
        raise UserError(staged.named(str(error))) from error
    config = read_configuration(staged, task)
    writes = task.fields.kind == "text"
    tokenizer = pretrained("AutoTokenizer", staged) if writes else None
    with plain_faults(f"{directory}: cannot read its config.json", staged):
        vocabulary = Vocabulary(class_names(config), tokenizer)
    return Deployment(predict, load_preprocessor(task.medium, config, staged), vocabulary, staged)
