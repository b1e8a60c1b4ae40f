"""Runs an exported model on sound files, as a deployer would."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from hibprune.data import AudioFault, AudioFile, read_waveform
from hibprune.errors import UserError
from hibprune.output import ONNX_FILE, RECIPE_FILE
from hibprune.recipe import load_recipe
from hibprune.runtime import onnx_session
from hibprune.tasks import Target, Vocabulary


@dataclass(frozen=True)
class Deployment:
    """An exported model with what it needs to be fed sound and understood; no PyTorch model."""

    session: Any
    feature_extractor: Any
    vocabulary: Vocabulary

    def logits(self, waveform: np.ndarray) -> np.ndarray:
        """Logits for one clip."""
        features = self.feature_extractor(
            waveform, sampling_rate=self.feature_extractor.sampling_rate, return_tensors="np"
        )
        name = self.session.get_inputs()[0].name
        return np.asarray(self.session.run(["logits"], {name: features[name]})[0][0])


def predict_files(directory: Path, files: Sequence[Path]) -> Iterator[tuple[Path, Target]]:
    """Each file with what the exported model says of it: label, text, or a label per slot.

    Raises:
        UserError: the directory is not that of a finished run; or, once the others are done, a line
            for each file that cannot be used.
    """
    for needed in (RECIPE_FILE, ONNX_FILE, "config.json"):
        if not (directory / needed).is_file():
            raise UserError(f"{directory}: no {needed} in it: not the directory of a finished run")
    recipe = load_recipe(directory / RECIPE_FILE).recipe
    deployment = _open(directory, wants_text=recipe.task.fields.kind == "text")
    faults = []
    for file in files:
        try:
            waveform = read_waveform(
                AudioFile(file),
                deployment.feature_extractor.sampling_rate,
                recipe.validation.durations,
            )
        except AudioFault as fault:
            faults.append(f"{file}: {fault.reason}")
            continue
        yield file, recipe.task.decode(deployment.logits(waveform), deployment.vocabulary)
    if faults:
        raise UserError("\n".join(faults))


def _open(directory: Path, wants_text: bool) -> Deployment:
    session = onnx_session(directory / ONNX_FILE, "cpu")
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
            if wants_text
            else None
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise UserError(f"{directory}: cannot be read: {reason}") from error
    vocabulary = Vocabulary(tuple(labels[i] for i in sorted(labels)), tokenizer)
    return Deployment(session, extractor, vocabulary)
