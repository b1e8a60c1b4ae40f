"""Loads a task model with what makes its inputs and turns its outputs into words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.data import Content, DurationLimits
from hibprune.errors import UserError
from hibprune.execution.files import digest, sha256_of
from hibprune.models.families import family_of
from hibprune.models.layouts import Family
from hibprune.models.preprocessing import (
    Preprocessor,
    Reading,
    SoundPreprocessor,
    class_names,
    load_preprocessor,
    pretrained,
)
from hibprune.tasks import TaskBase, Vocabulary

FILES_OF_A_MODEL = ("*.json", "*.txt", "*.safetensors", "*.model")
PICKLED_WEIGHTS = "pytorch_model*.bin*"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "vocab.txt",
    "merges.txt",
)  # fmt: skip
UNTRAINED_IS_FINE = ("masked_spec_embed",)
"""Weights that only pre-training uses; many fine-tuned checkpoints leave them out."""


class ModelSource(BaseModel):
    """Which checkpoint: a directory (relative to the recipe) or a Hub id, and its revision.

    Weights come as safetensors. `pickle: true` also accepts `pytorch_model.bin`, read with torch's
    weights-only loader. Code that comes with a checkpoint is never run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str = Field(min_length=1)
    revision: str | None = None
    pickle: bool = False

    def local_directory(self, root: Path) -> Path | None:
        """The directory meant, or None when the source is a Hub id."""
        directory = root / Path(self.source).expanduser()
        return directory if directory.is_dir() else None

    def problems(self, root: Path) -> list[str]:
        """Why the source cannot be right, without loading or downloading anything."""
        directory = self.local_directory(root)
        if directory is None:
            if self.source.count("/") == 1 and not self.source.startswith((".", "/", "~")):
                return []
            return [f"{self.source}: no such directory, and not a Hub id (owner/name)"]
        if not (directory / "config.json").is_file():
            return [f"{self.source}: no config.json in it: not a Hugging Face model directory"]
        if not weight_files(directory, self.pickle):
            hint = "" if self.pickle else " (model.pickle: true also accepts pytorch_model.bin)"
            return [f"{self.source}: no model.safetensors in it{hint}"]
        return []


@dataclass(frozen=True)
class Checkpoint:
    """A task model in evaluation mode, with what prepares its inputs."""

    model: PreTrainedModel
    preprocessor: Preprocessor
    vocabulary: Vocabulary
    family: Family
    source: ModelSource
    directory: Path
    identity: str

    def read(self, content: Content, limits: DurationLimits) -> Reading:
        """A waveform at the model's sampling rate, or a text. Raises ContentFault."""
        return self.preprocessor.read(content, limits)

    def inputs(self, reading: Reading) -> dict[str, Tensor]:
        """The model's inputs for one clip or text."""
        return self.preprocessor.inputs(reading)

    def calibration_inputs(self, reading: Reading) -> dict[str, Tensor]:
        """The model's inputs for one clip or text, as long as that where others fill 30 s.

        For encoder–decoder models, which cannot pad within a batch, silence is added up to a whole
        half second, so that clips of about one length can share a batch.
        """
        prepare = self.preprocessor
        if len(self.family.stacks) == 1 or not isinstance(prepare, SoundPreprocessor):
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


def weight_files(directory: Path, pickle: bool) -> list[Path]:
    """The files that hold a checkpoint's weights."""
    found = sorted(directory.glob("model*.safetensors"))
    return found or (sorted(directory.glob("pytorch_model*.bin")) if pickle else [])


def load_checkpoint(
    source: ModelSource, task: TaskBase, root: Path, device: torch.device
) -> Checkpoint:
    """Load a model with what prepares its inputs and its vocabulary, in float32.

    Raises:
        UserError: it cannot be found or read, its heads are not known, it does not serve the task,
            or it has no trained head for it.
    """
    directory = source.local_directory(root) or _from_hub(source)
    if not weight_files(directory, source.pickle):
        raise UserError(
            f"{source.source}: no safetensors weights: set model.pickle: true to read "
            "pytorch_model.bin (weights only), or model.revision to one that has them"
        )
    config = pretrained("AutoConfig", directory, source.source)
    family = family_of(config.model_type, source.source)
    if type(config) not in getattr(transformers, task.model_class)._model_mapping:
        raise UserError(
            f"{source.source}: cannot serve '{task.model_dump()['kind']}': transformers has no "
            f"{task.model_class} of model type '{config.model_type}'"
        )
    model, loading = pretrained(
        task.model_class,
        directory,
        source.source,
        dtype=torch.float32,
        output_loading_info=True,
        # They are told of below, and more plainly than by transformers.
        ignore_mismatched_sizes=True,
    )
    untrained = [key for key in loading["missing_keys"] if not key.endswith(UNTRAINED_IS_FINE)]
    if untrained:
        raise UserError(
            f"{source.source}: no weights for {untrained[0]}"
            f"{f' and {len(untrained) - 1} more' if len(untrained) > 1 else ''}: "
            f"not a model trained for task '{task.model_dump()['kind']}'"
        )
    if loading["mismatched_keys"]:
        raise UserError(f"{source.source}: its weights do not have the shapes its config.json says")
    writes = task.fields.kind == "text"
    tokenizer = pretrained("AutoTokenizer", directory, source.source) if writes else None
    vocabulary = Vocabulary(
        labels=class_names(model.config),
        tokenizer=tokenizer,
        generation=getattr(model, "generation_config", None),
        positions=getattr(model.config, "max_target_positions", None),
    )
    fault = task.vocabulary_fault(vocabulary)
    if fault:
        raise UserError(f"{source.source}: cannot serve '{task.model_dump()['kind']}': {fault}")
    return Checkpoint(
        model=model.to(device).eval(),
        preprocessor=load_preprocessor(task.medium, model.config, directory, source.source),
        vocabulary=vocabulary,
        family=family,
        source=source,
        directory=directory,
        identity=_identity(directory, source.pickle),
    )


def _from_hub(source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from requests.exceptions import RequestException

    patterns = [*FILES_OF_A_MODEL, *([PICKLED_WEIGHTS] if source.pickle else [])]
    try:
        return Path(
            snapshot_download(source.source, revision=source.revision, allow_patterns=patterns)
        )
    except HFValidationError as error:
        raise UserError(
            f"{source.source}: no such directory, and not a Hub id (owner/name)"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, RequestException, OSError) as error:
        raise UserError(
            f"{source.source}: not a directory here and not to be had from the Hub "
            f"({type(error).__name__}): check the name, the revision and the network"
        ) from error


def _identity(directory: Path, pickle: bool) -> str:
    """A digest of all that decides what the model says; tokenizers make inputs and targets."""
    names = ["config.json", "preprocessor_config.json", *TOKENIZER_FILES]
    files = [directory / name for name in names if (directory / name).is_file()]
    return digest(*(sha256_of(path) for path in [*files, *weight_files(directory, pickle)]))
