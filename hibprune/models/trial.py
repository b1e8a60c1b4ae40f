"""A trial of a loaded model on made-up input, before anything is written or computed in earnest."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hibprune.errors import UserError
from hibprune.execution.runtime import Predict
from hibprune.models.families import has_decoder
from hibprune.models.parts import plain_faults
from hibprune.models.preprocessing import Preprocessor, SoundPreprocessor, TextPreprocessor
from hibprune.models.staging import StagedCheckpoint
from hibprune.records.medium import Length
from hibprune.tasks import TaskBase, Vocabulary

TRIAL_SECONDS, TRIAL_TOKENS = 1.0, 512
REMEDY = ": take its configuration, weights and preprocessing from one checkpoint"


def try_model(
    model: PreTrainedModel,
    preprocessor: Preprocessor,
    vocabulary: Vocabulary,
    task: TaskBase,
    staged: StagedCheckpoint,
) -> None:
    """Let a model say something of made-up input, on the device it is on, and save its settings.

    Raises:
        UserError: it fails, gives out numbers that are none, or its settings cannot be saved.
    """
    _require_finite_weights(model, staged.source)
    if isinstance(preprocessor, TextPreprocessor):
        _require_known_tokens(model, preprocessor, staged.source)
    length = trial_length(preprocessor)
    place = f"{staged.source}: fails on a trial {preprocessor.medium.one} of {length}"
    with plain_faults(place, staged, REMEDY):
        inputs = preprocessor.example(length, 1)
        if has_decoder(model):
            _encode(model, inputs)
        output = task.on_trial().torch_predict(model)(inputs)
        if not np.isfinite(output).all():
            raise UserError(f"{place}: NaN or infinite values come out{REMEDY}")
        task.decode(output[0], vocabulary)
    place = f"{staged.source}: its settings cannot be saved"
    with plain_faults(place, staged, REMEDY), tempfile.TemporaryDirectory() as scratch:
        _save_settings(model, (preprocessor.part, vocabulary.tokenizer), scratch)


def _save_settings(model: PreTrainedModel, parts: Iterable[Any], directory: str) -> None:
    """Save all but the weights; some settings can be loaded and not saved.

    What saving changes about a model's settings, it changes about a copy of them.
    """
    same = copy.copy(model)
    same.config = copy.deepcopy(model.config)
    if model.can_generate():
        same.generation_config = copy.deepcopy(model.generation_config)
    same.save_pretrained(directory, state_dict={})
    for part in parts:
        if part is not None:
            part.save_pretrained(directory)


@torch.inference_mode()
def _encode(model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    """Whisper's `generate` cuts what is longer than its window into pieces without a word."""
    device = next(model.parameters()).device
    model.get_encoder()(**{name: value.to(device) for name, value in inputs.items()})


def trial_length(preprocessor: Preprocessor) -> Length:
    """How long an input is made up: short of sound, up to the limit of text."""
    usual = TRIAL_SECONDS if preprocessor.medium.unit == "seconds" else TRIAL_TOKENS
    return Length(value=min(usual, preprocessor.longest), unit=preprocessor.medium.unit)


def _require_finite_weights(model: PreTrainedModel, source: str) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(
                f"{source}: NaN or infinite values among its weights ({name}): take another copy"
            )


def _require_known_tokens(
    model: PreTrainedModel, preprocessor: TextPreprocessor, source: str
) -> None:
    known = model.get_input_embeddings().num_embeddings
    token, number = max(preprocessor.tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    if number >= known:
        raise UserError(
            f"{source}: its tokenizer gives '{str(token)[:40]}' the number {number}, but the model "
            f"knows numbers below {known}: take both from one checkpoint"
        )


def shortest_taken(
    model: PreTrainedModel, preprocessor: SoundPreprocessor, task: TaskBase
) -> float:
    """Seconds of the shortest clip that the model gives something out for, to the sample.

    Found by trying ever longer ones: a front end needs as many samples as its first output hears.
    """
    predict = task.on_trial().torch_predict(model)
    clip = preprocessor.noise(trial_length(preprocessor), 1)[0]
    taken = _taking(predict, preprocessor, clip)
    fails, works = 0, 1
    while works < len(clip) and not taken(works):
        fails, works = works, min(2 * works, len(clip))
    while works - fails > 1:
        middle = (fails + works) // 2
        fails, works = (fails, middle) if taken(middle) else (middle, works)
    return works / preprocessor.sampling_rate


def _taking(
    predict: Predict, preprocessor: SoundPreprocessor, clip: np.ndarray
) -> Callable[[int], bool]:
    """Whether the first so many samples of a clip, which is taken as a whole, are taken, too."""

    def shapes(samples: int) -> dict[str, torch.Size]:
        return {name: part.shape for name, part in preprocessor.inputs(clip[:samples]).items()}

    whole = shapes(len(clip))

    def taken(samples: int) -> bool:
        try:
            # An extractor that pads all clips to one length leaves nothing to try.
            if shapes(samples) == whole:
                return True
            output = predict(preprocessor.inputs(clip[:samples]))
        except Exception:  # whatever a front end says to a clip that it cannot take
            return False
        return output.size > 0 and bool(np.isfinite(output).all())

    return taken
