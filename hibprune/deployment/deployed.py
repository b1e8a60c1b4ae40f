"""An exported model as a deployer has it: graphs and settings in a directory, no PyTorch model.

Directories come from strangers too: what the graphs take and give out is held against what the
settings beside them say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from torch import Tensor

from hibprune.data import Content, ContentFault
from hibprune.deployment.batching import batches
from hibprune.deployment.export import read_metadata
from hibprune.deployment.inputs import Input, NoInput, inputs_of
from hibprune.deployment.own_words import SHORTEST_CLIP, task_of, task_of_configuration
from hibprune.errors import UserError
from hibprune.execution.files import open_bounded, read_fault
from hibprune.execution.libraries import quiet_libraries
from hibprune.execution.output import MARKER, RECIPE_FILE
from hibprune.execution.runtime import MASK, MAX_GRAPH_BYTES, ONNX_DIRECTORY, OnnxModel
from hibprune.models.architecture import read_configuration
from hibprune.models.checkpoint import needed_files
from hibprune.models.masking import own_outputs
from hibprune.models.parts import plain_faults, pretrained
from hibprune.models.preprocessing import (
    Preprocessor,
    SoundPreprocessor,
    class_names,
    load_preprocessor,
)
from hibprune.models.source import real_file
from hibprune.models.staging import StagedCheckpoint
from hibprune.recipe import load_recipe
from hibprune.records.manifest import FILE_NAME
from hibprune.records.medium import SOUND, Medium
from hibprune.records.precision import FIRST_GRAPHS, Precision, graph_name
from hibprune.tasks import Target, TaskBase, Vocabulary

LONGEST_NAMED = 100
READ_AHEAD = 8
"""Batches read before the first is run, so that there are some of one length among them."""
LONGEST_SHORTEST = 60.0
"""Seconds: no model asks for more than this."""


@dataclass(frozen=True)
class Deployment:
    """An exported model with what it needs to be fed and understood."""

    directory: Path
    task: TaskBase
    model: OnnxModel
    preprocessor: Preprocessor
    vocabulary: Vocabulary
    staged: StagedCheckpoint
    """What it was opened from, there while it is used."""

    @property
    def masked(self) -> bool:
        """Whether the graph of a waveform takes a mask, so that clips may be filled up."""
        wants = MASK in self.model.takes
        return wants and self.task.medium is SOUND and self.task.generation is None

    def prepared(self, content: Content) -> dict[str, Tensor]:
        """A sound file or a text as the graphs take it, but for a mask. Raises ContentFault."""
        return self.preprocessor.inputs(self.preprocessor.read_as_deployed(content))

    @property
    def gives_logits(self) -> bool:
        """Whether the graphs give out logits, not the tokens that a decoder says."""
        return self.task.generation is None

    def output(self, inputs: dict[str, Tensor]) -> np.ndarray:
        """What the model gives out for a batch.

        Raises:
            UserError: it cannot be run, or gives out what cannot be an answer.
        """
        with _told_of(self.staged, f"{self.directory}: its model cannot be run"):
            outputs = np.asarray(self.model.predict(inputs))
        (number,) = {len(tensor) for tensor in inputs.values()}
        fault = self._output_fault(outputs, number)
        if fault is not None:
            raise UserError(f"{self.directory}: its model {fault}: not as hibprune exports one")
        return outputs

    def outputs(self, inputs: dict[str, Tensor]) -> Sequence[np.ndarray]:
        """The same input by input, of transcripts without the frames that only fill up.

        Raises:
            UserError: as `output`.
        """
        given = self.output(inputs)
        if not self.masked:
            return list(given)
        with _told_of(self.staged, f"{self.directory}: cannot read its config.json"):
            return own_outputs(self.task, self.vocabulary.configuration, inputs, given)

    def said(self, output: np.ndarray) -> Target:
        """What an output says, in the task's words. Raises UserError where none can be read."""
        with plain_faults(f"{self.directory}: its tokenizer cannot read what its model says"):
            return self.task.decode(output, self.vocabulary)

    def _output_fault(self, outputs: np.ndarray, number: int) -> str | None:
        shape = "×".join(map(str, outputs.shape)) or "a single number"
        found = f"gives out {outputs.dtype.name} of shape {shape}"
        if self.task.fields.kind != "text":
            classes = len(self.vocabulary.labels)
            if outputs.shape != (number, classes):
                return f"{found} where the labels of config.json want {number}×{classes}"
            kind: type[np.generic] = np.floating
        else:
            if outputs.ndim not in (2, 3) or len(outputs) != number or not outputs.shape[-1]:
                return f"{found} for {_counted(number, self.task.medium)}"
            # Tokens that a decoder says, or a number for each token at every frame.
            kind = np.integer if outputs.ndim == 2 else np.floating
        if not np.issubdtype(outputs.dtype, kind):
            return f"{found}, which are no {'tokens' if kind is np.integer else 'logits'}"
        return None if np.isfinite(outputs).all() else "gives out numbers that are not finite"


def told(
    directory: str,
    arguments: Sequence[str],
    precision: Precision = "fp32",
    batch: int = 1,
    with_scores: bool = False,
) -> Iterator[dict[str, Any]]:
    """Of each clip or text, what the model says of it or a `fault`; nothing while it works.

    Up to `batch` go through the model together: of equal shape, or clips of about one length where
    its graph takes a mask.

    Raises:
        UserError: the directory is not that of a finished run, its model is not a sound one, or it
            cannot be asked so.
    """
    deployment = opened(Path(directory), precision)
    if with_scores and not deployment.gives_logits:
        raise UserError(
            f"{directory}: its decoder gives out tokens, no probabilities: leave --scores out"
        )
    yield {}
    named = (one for argument in arguments for one in inputs_of(argument, deployment.preprocessor))
    while some := list(islice(named, 1 if batch == 1 else batch * READ_AHEAD)):
        yield from _told_of_some(deployment, some, batch, with_scores)


def _told_of_some(
    deployment: Deployment, some: Sequence[Input | NoInput], batch: int, with_scores: bool
) -> Iterator[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    prepared: dict[int, dict[str, Tensor]] = {}
    for place, one in enumerate(some):
        if isinstance(one, NoInput):
            found[place] = {"fault" if one.is_fault else "note": one.line}
            continue
        try:
            prepared[place] = deployment.prepared(one.content)
        except ContentFault as fault:
            found[place] = {
                "fault": f"{_named(one.argument, deployment.task.medium)}: {fault.reason}"
            }
    for places, inputs in batches(prepared, batch, deployment.masked):
        for place, output in zip(places, deployment.outputs(inputs), strict=True):
            one = some[place]
            assert isinstance(one, Input)
            found[place] = _answer(deployment, one, output, with_scores)
        if batch > 1:
            # A sign of life: the first answer waits for the whole of what was read ahead.
            yield {}
    for _, answer in sorted(found.items()):
        yield answer


def _answer(
    deployment: Deployment, one: Input, output: np.ndarray, with_scores: bool
) -> dict[str, Any]:
    task = deployment.task
    scores = task.probabilities(output, deployment.vocabulary) if with_scores else None
    return {
        "argument_name": task.medium.argument,
        "argument": one.argument,
        "named": _named(one.argument, task.medium),
        "prediction": deployment.said(output),
        "is_transcript": task.fields.kind == "text",
        "scores": scores,
    }


def opened(directory: Path, precision: Precision) -> Deployment:
    """A variant by its precision, for the task that recipe.yaml or else the model itself names.

    A copy may consist of graphs and settings alone. A directory that a run works in has to be
    finished: until then its files may be half of two models.

    Raises:
        UserError: the directory holds no model of ours, or none that is sound.
    """
    quiet_libraries()
    if os.path.lexists(directory / MARKER):
        for name in (RECIPE_FILE, FILE_NAME):
            _file(directory, name)
    if os.path.lexists(directory / RECIPE_FILE):
        task: TaskBase = load_recipe(_file(directory, RECIPE_FILE)).recipe.task
        return _open(directory, task, precision)
    path = _first_graph(directory, precision)
    task = task_of_configuration(directory) or _task_of_graph(directory, path)
    deployment = _open(directory, task, precision)
    own = task_of(deployment.model.about)
    if own is None:
        raise _without_task(path)
    if own != task:
        raise UserError(f"{path}: is for another task than its config.json: take both of one run")
    return deployment


def _first_graph(directory: Path, precision: Precision) -> Path:
    """The one that runs first, of whatever task; where there is none, the usual one is missed."""
    names = [f"{ONNX_DIRECTORY}/{graph_name(name, precision)}" for name in FIRST_GRAPHS]
    there = (name for name in names if os.path.lexists(directory / name))
    return _file(directory, next(there, names[0]))


def _task_of_graph(directory: Path, path: Path) -> TaskBase:
    """The task as a graph tells of it, where config.json does not."""
    name = str(path.relative_to(directory))
    task = task_of(read_metadata(real_file(directory, name, str(directory))))
    if task is None:
        raise _without_task(path)
    return task


def _without_task(path: Path) -> UserError:
    return UserError(
        f"{path}: does not say which task it is for, as those of hibprune do: put the "
        f"{RECIPE_FILE} of its run into {path.parent.parent}"
    )


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


def _open(directory: Path, task: TaskBase, precision: Precision) -> Deployment:
    graphs = {graph: f"{ONNX_DIRECTORY}/{graph_name(graph, precision)}" for graph in task.graphs}
    beside = [f"{ONNX_DIRECTORY}/{name}" for name in task.beside_graphs]
    for name in (*graphs.values(), *beside, "config.json"):
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
        model = task.onnx_model(staged.directory, "cpu")
    if isinstance(preprocessor, SoundPreprocessor):
        shortest = _seconds(model.about.get(SHORTEST_CLIP))
        preprocessor = replace(preprocessor, shortest=shortest)
    return Deployment(directory, task, model, preprocessor, vocabulary, staged)


def _seconds(said: object) -> float:
    """Seconds that a graph speaks of; none where it says nothing that can be."""
    if isinstance(said, int | float) and 0 <= said < LONGEST_SHORTEST:
        return float(said)
    return 0.0


def _counted(number: int, medium: Medium) -> str:
    return f"one {medium.one}" if number == 1 else medium.counted(number)


@contextmanager
def _told_of(staged: StagedCheckpoint, place: str) -> Iterator[None]:
    """One line for whatever goes wrong with a staged model, with the name it has elsewhere."""
    try:
        with plain_faults(place, staged):
            yield
    except UserError as error:
        raise UserError(staged.named(str(error))) from error
