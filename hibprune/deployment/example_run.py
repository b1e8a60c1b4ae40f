"""A rehearsal of an exported model: its example once more, held against what the run found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hibprune.data import ContentFault
from hibprune.deployment.batching import together
from hibprune.deployment.deployed import Deployment, opened
from hibprune.deployment.waveform import graph_difference
from hibprune.errors import UserError
from hibprune.execution.files import open_bounded, read_text_bounded
from hibprune.models.source import real_file
from hibprune.records.medium import SOUND
from hibprune.records.precision import Precision

MAX_ARRAY_BYTES = 2**26
CLOSE = 1e-4
"""How far tensors of the example may be from what its input becomes elsewhere."""


def rehearsed(
    directory: str, precision: Precision, source: str, tensors: Mapping[str, str], output: str
) -> Iterator[dict[str, Any]]:
    """How far what a variant gives out for the example is from what it gave out in the run.

    First nothing; then a `fault`, or what it `says` with its `difference` as a share of the largest
    logit, None for tokens. `source` is the example's input, `tensors` and `output` are NumPy files,
    all by their places in the directory.

    Raises:
        UserError: the model or the example cannot be read, or the model cannot be run.
    """
    place = Path(directory)
    deployment = opened(place, precision)
    yield {}
    inputs = {name: torch.from_numpy(_array(place, file)) for name, file in tensors.items()}
    if not _same(_prepared(deployment, place, source), inputs):
        yield {"fault": f"{source} becomes other tensors than those beside it: other preprocessing"}
        return
    expected, given = _array(place, output), deployment.output(inputs)
    if given.shape != expected.shape and deployment.gives_logits:
        yield {"fault": f"gives out {given.shape} where the run's is {expected.shape}"}
        return
    difference = None
    if deployment.gives_logits:
        scale = float(np.abs(expected).max(initial=0)) or 1.0
        difference = float(np.abs(given - expected).max(initial=0)) / scale
    yield {"says": deployment.said(given[0]), "difference": difference}


def heard(
    directory: str, source: str, tensors: Mapping[str, str], graph: str, joined: str
) -> Iterator[dict[str, Any]]:
    """How far a graph that takes the example's sound is from the one that takes its tensors.

    First nothing; then the `difference` as a share of the largest value.

    Raises:
        UserError: the model or the example cannot be read, or a graph cannot be run.
    """
    place = Path(directory)
    preprocessor = opened(place, "fp32").preprocessor
    yield {}
    try:
        sound = preprocessor.read_as_deployed(preprocessor.content(str(place / source)))
    except ContentFault as fault:
        raise UserError(f"{source}: {fault.reason}: copy it again") from fault
    features = {name: torch.from_numpy(_array(place, file)) for name, file in tensors.items()}
    files = [real_file(place, name, directory) for name in (graph, joined)]
    yield {"difference": graph_difference(files[0], features, files[1], sound)}


def _prepared(deployment: Deployment, place: Path, source: str) -> dict[str, Tensor]:
    try:
        if deployment.task.medium is SOUND:
            open_bounded(place / source, MAX_ARRAY_BYTES, within=place).close()
            argument = str(place / source)
        else:
            argument = read_text_bounded(place / source, MAX_ARRAY_BYTES, place).rstrip("\n")
        prepared = deployment.prepared(deployment.preprocessor.content(argument))
        return together([prepared], deployment.masked)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read: copy it again") from error
    except ContentFault as fault:
        raise UserError(f"{source}: {fault.reason}: copy it again") from fault


def _same(made: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> bool:
    return made.keys() == kept.keys() and all(
        made[name].shape == tensor.shape
        and made[name].dtype == tensor.dtype
        and torch.allclose(made[name], tensor, atol=CLOSE)
        for name, tensor in kept.items()
    )


def _array(directory: Path, name: str) -> np.ndarray:
    """A NumPy file of the directory, without objects in it."""
    try:
        with open_bounded(directory / name, MAX_ARRAY_BYTES, within=directory) as file:
            return np.asarray(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{name}: no array that can be read: copy it again") from error
