"""Runs an exported model on sound files, as a deployer would."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from hibprune.checkpoint import longest_clip
from hibprune.data import AudioFault, AudioFile, read_waveform
from hibprune.errors import UserError
from hibprune.output import RECIPE_FILE
from hibprune.recipe import load_recipe
from hibprune.runtime import ONNX_DIRECTORY, Predict
from hibprune.tasks import Target, TaskBase, Vocabulary


@dataclass(frozen=True)
class Deployment:
    """An exported model with what it needs to be fed sound and understood; no PyTorch model."""

    predict: Predict
    feature_extractor: Any
    vocabulary: Vocabulary

    def output(self, waveform: np.ndarray) -> np.ndarray:
        """What the model gives out for one clip."""
        features = self.feature_extractor(
            waveform, sampling_rate=self.feature_extractor.sampling_rate, return_tensors="pt"
        )
        name = self.feature_extractor.model_input_names[0]
        return np.asarray(self.predict({name: features[name]})[0])


def predict_files(directory: Path, files: Sequence[Path]) -> Iterator[tuple[Path, Target]]:
    """Each file with what the exported model says of it: label, text, or a label per slot.

    Raises:
        UserError: the directory is not that of a finished run; or, once the others are done, a line
            for each file that cannot be used.
    """
    _require_files(directory, [RECIPE_FILE])
    recipe = load_recipe(directory / RECIPE_FILE).recipe
    graphs = [f"{ONNX_DIRECTORY}/{graph}" for graph in recipe.task.graphs]
    _require_files(directory, [*graphs, "config.json"])
    deployment = _open(directory, recipe.task)
    limits = recipe.validation.durations.up_to(longest_clip(deployment.feature_extractor))
    faults = []
    for file in files:
        try:
            waveform = read_waveform(
                AudioFile(file), deployment.feature_extractor.sampling_rate, limits
            )
        except AudioFault as fault:
            faults.append(f"{file}: {fault.reason}")
            continue
        yield file, recipe.task.decode(deployment.output(waveform), deployment.vocabulary)
    if faults:
        raise UserError("\n".join(faults))


def _require_files(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory}: no {name} in it: not the directory of a finished run")


def _open(directory: Path, task: TaskBase) -> Deployment:
    predict = task.onnx_predict(directory, "cpu")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        labels = {int(number): label for number, label in config.get("id2label", {}).items()}
        extractor = transformers.AutoFeatureExtractor.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        tokenizer = (
            transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
            if task.fields.kind == "text"
            else None
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"{directory}: cannot be read: {reason}") from error
    vocabulary = Vocabulary(tuple(labels[i] for i in sorted(labels)), tokenizer)
    return Deployment(predict, extractor, vocabulary)
