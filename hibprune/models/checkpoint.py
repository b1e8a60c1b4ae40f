"""Loads a task model with what makes its inputs and turns its outputs into words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.data import Content, DurationLimits
from hibprune.errors import UserError
from hibprune.models.architecture import attention_of, read_configuration, require_weights_to_fill
from hibprune.models.families import family_of, has_decoder
from hibprune.models.layouts import Family
from hibprune.models.licence import stated_licence
from hibprune.models.parts import WEIGHTS, plain_faults, pretrained
from hibprune.models.preprocessing import (
    Preprocessor,
    Reading,
    SoundPreprocessor,
    class_names,
    load_preprocessor,
    output_size,
)
from hibprune.models.rotary_positions import keep_no_positions
from hibprune.models.source import EXTRACTOR_FILES, TOKENIZER_FILES, ModelSource, weight_files
from hibprune.models.staging import StagedCheckpoint
from hibprune.models.trial import shortest_taken, trial_length, try_model
from hibprune.records.licence import Licence
from hibprune.records.medium import SOUND, TEXT
from hibprune.tasks import TaskBase, Vocabulary

UNTRAINED_IS_FINE = ("masked_spec_embed",)
"""Weights that only pre-training uses; many fine-tuned checkpoints leave them out."""
PYTORCH = ("pt", "mlx")
"""Formats that safetensors files may say they have; without one, they count as PyTorch's."""


@dataclass(frozen=True)
class Checkpoint:
    """A task model in evaluation mode, with what prepares its inputs."""

    model: PreTrainedModel
    preprocessor: Preprocessor
    vocabulary: Vocabulary
    family: Family
    source: ModelSource
    identity: str
    """A digest of all that decides what the model says."""
    staged: StagedCheckpoint | None = None
    """What it was loaded from, there while it is used."""
    licence: Licence | None = None
    """That which the checkpoint's own card states."""

    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """A waveform at the model's sampling rate, or a text. Raises ContentFault."""
        return self.preprocessor.read(content, limits)

    def inputs(self, reading: Reading) -> dict[str, Tensor]:
        """The model's inputs for one clip or text."""
        return self.preprocessor.inputs(reading)

    def calibration_inputs(self, reading: Reading) -> dict[str, Tensor]:
        """The model's inputs for one clip or text, as long as that where others fill 30 s.

        For encoder–decoder models, which cannot pad within a batch, silence is added up to a whole
        half second, so that clips of about one length can share a batch. A classifier in the
        decoder's place averages over all frames of the 30 s, so that it is given them all.
        """
        prepare = self.preprocessor
        if not has_decoder(self.model) or not isinstance(prepare, SoundPreprocessor):
            return self.inputs(reading)
        waveform = np.asarray(reading)
        step = prepare.sampling_rate // 2
        filled = np.pad(waveform, (0, -len(waveform) % step))
        inputs = self.inputs(filled)
        if self.family.positions is None:
            return inputs
        name, axis = self.model.main_input_name, self.family.length_axis
        frames = len(filled) // prepare.feature_extractor.hop_length
        whole = inputs[name]
        return {name: whole.narrow(axis, 0, min(frames, whole.shape[axis]))}

    def trial_inputs(self) -> dict[str, Tensor]:
        """Made-up inputs as `calibration_inputs` makes them of a clip or text."""
        length = trial_length(self.preprocessor)
        if isinstance(self.preprocessor, SoundPreprocessor):
            return self.calibration_inputs(self.preprocessor.noise(length, 1)[0])
        return self.preprocessor.example(length, 1)


def load_checkpoint(
    source: ModelSource, task: TaskBase, root: Path, device: torch.device
) -> Checkpoint:
    """Load a model with what prepares its inputs and its vocabulary, in float32, and try it.

    Raises:
        UserError: it cannot be found or read, its heads are not known, it does not serve the task,
            has no trained head for it, or fails on made-up input.
    """
    name = source.source
    directory = source.find(root)
    staged = StagedCheckpoint(directory, name, needed_files(directory, task))
    configuration = read_configuration(staged, task)
    files = [staged.link(file) for file in weight_files(directory, source.pickle, name)]
    for file in files:
        if file.suffix == ".safetensors":
            _require_pytorch(file, staged)
    require_weights_to_fill(configuration, task, staged, sum(file.stat().st_size for file in files))
    model = _model(configuration, task, staged)
    with plain_faults(f"{name}: cannot be moved to {device.type}", staged):
        model = model.to(device).eval()
    keep_no_positions(model)
    preprocessor = load_preprocessor(task.medium, model.config, staged)
    vocabulary = _vocabulary(model, task, staged)
    try_model(model, preprocessor, vocabulary, task, staged)
    if isinstance(preprocessor, SoundPreprocessor):
        shortest = shortest_taken(model, preprocessor, task)
        preprocessor = replace(preprocessor, shortest=shortest)
    return Checkpoint(
        model=model,
        preprocessor=preprocessor,
        vocabulary=vocabulary,
        family=family_of(model.config.model_type),
        source=source,
        identity=staged.identity,
        staged=staged,
        licence=stated_licence(directory, name),
    )


def needed_files(directory: Path, task: TaskBase) -> list[str]:
    """Names of the files beside the weights that a task's model is loaded from, where they are."""
    speaks = task.fields.kind == "text"
    names = ["config.json"]
    if speaks:
        names.append("generation_config.json")
    if task.medium is SOUND:
        present = [name for name in EXTRACTOR_FILES if os.path.lexists(directory / name)]
        # transformers reads the first that there is.
        names += present[:1]
    if speaks or task.medium is TEXT:
        names += TOKENIZER_FILES
    return names


def _model(configuration: Any, task: TaskBase, staged: StagedCheckpoint) -> PreTrainedModel:
    model, loading = pretrained(
        task.model_class,
        staged,
        config=configuration,
        attn_implementation=attention_of(configuration, task),
        dtype=torch.float32,
        output_loading_info=True,
        # They are told of below, and more plainly than by transformers.
        ignore_mismatched_sizes=True,
    )
    untrained = [key for key in loading["missing_keys"] if not key.endswith(UNTRAINED_IS_FINE)]
    if untrained:
        raise UserError(
            f"{staged.source}: no weights for {untrained[0]}"
            f"{f' and {len(untrained) - 1} more' if len(untrained) > 1 else ''}: "
            f"not a model trained for task '{task.model_dump()['kind']}'"
        )
    beyond = _beyond_its_layers(model, loading["unexpected_keys"])
    if beyond is not None:
        raise UserError(
            f"{staged.source}: its weights have more layers than its config.json says ({beyond}): "
            "take config.json and weights from one checkpoint"
        )
    if loading["mismatched_keys"]:
        raise UserError(f"{staged.source}: its weights do not have the shapes its config.json says")
    # Where the exporter would look for more.
    model.config.name_or_path = ""
    found: PreTrainedModel = model
    return found


def _beyond_its_layers(model: PreTrainedModel, unused: Iterable[str]) -> str | None:
    """A weight that was left out although a layer of the model has one of that name, if any."""

    def of_any_layer(name: str) -> str:
        return re.sub(r"\.\d+\.", ".#.", name)

    names = {of_any_layer(name) for name in model.state_dict()}
    prefix = f"{model.base_model_prefix}."
    for name in sorted(unused):
        own = of_any_layer(name)
        # The base model alone may have been saved, without its name in front.
        if "#" in own and names & {own, prefix + own, own.removeprefix(prefix)}:
            return name
    return None


def _require_pytorch(file: Path, staged: StagedCheckpoint) -> None:
    with (
        plain_faults(f"{staged.source}: cannot read {WEIGHTS}", staged),
        safe_open(file, framework="pt") as weights,
    ):
        written_by = (weights.metadata() or {}).get("format", "pt")
    if written_by not in PYTORCH:
        raise UserError(
            f"{staged.source}: {file.name} was written by {written_by[:40]}, not PyTorch: "
            "save the model from PyTorch first"
        )


def _vocabulary(model: PreTrainedModel, task: TaskBase, staged: StagedCheckpoint) -> Vocabulary:
    writes = task.fields.kind == "text"
    serving = f"{staged.source}: cannot serve '{task.model_dump()['kind']}'"
    tokenizer = pretrained("AutoTokenizer", staged) if writes else None
    with plain_faults(serving, staged):
        vocabulary = Vocabulary(
            labels=class_names(model.config),
            tokenizer=tokenizer,
            generation=getattr(model, "generation_config", None),
            positions=getattr(model.config, "max_target_positions", None),
            configuration=model.config,
            outputs=output_size(model),
        )
        fault = task.vocabulary_fault(vocabulary)
    if fault:
        raise UserError(f"{serving}: {fault}")
    return vocabulary
