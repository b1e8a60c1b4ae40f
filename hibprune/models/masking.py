"""Masks beside waveforms: clips of different lengths in one batch, and models that can have them.

A mask tells attention and averages which frames are silence behind a clip. It cannot help where
silence has gone into a clip's own frames before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, Wav2Vec2FeatureExtractor

from hibprune.execution.runtime import MASK, Predict
from hibprune.models.families import has_decoder
from hibprune.models.preprocessing import Preprocessor, SoundPreprocessor
from hibprune.models.trial import trial_length
from hibprune.records.medium import Length
from hibprune.tasks import TaskBase

SHARES = (1.0, 0.7, 0.4)
"""Of the longest clip, those that a trial and comparisons fill up; over again in larger batches."""
CLOSE = {"cpu": 1e-4, "cuda": 1e-2}
"""Of the largest logit: how far a clip may be in a batch from alone. GPUs convolve in TF32."""


def padded(clips: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Clips (1, samples) of any lengths as one batch, with the mask that says which are theirs.

    Behind the shorter ones stand zeros, as transformers' feature extractors put them there.
    """
    (name,) = clips[0].keys()
    waveforms = [clip[name] for clip in clips]
    longest = max(one.shape[-1] for one in waveforms)

    def stacked(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([functional.pad(one, (0, longest - one.shape[-1])) for one in tensors])

    ones = (torch.ones_like(one, dtype=torch.long) for one in waveforms)
    return {name: stacked(waveforms), MASK: stacked(ones)}


def frames_of(config: Any, samples: int) -> int:
    """How many frames a wav2vec2-like model makes of so many samples of a waveform."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        samples = (samples - kernel) // stride + 1
    if getattr(config, "add_adapter", False):
        for _ in range(config.num_adapter_layers):
            samples = (samples - 1) // config.adapter_stride + 1
    return samples


def own_outputs(
    task: TaskBase, config: Any, inputs: dict[str, Tensor], outputs: np.ndarray
) -> list[np.ndarray]:
    """What a model gave out for a padded batch, clip by clip, without frames of silence alone."""
    lengths = inputs[MASK].sum(-1).tolist()
    return [
        task.without_padding(output, frames_of(config, samples))
        for output, samples in zip(outputs, lengths, strict=True)
    ]


def shortened_noise(
    preprocessor: SoundPreprocessor, length: Length, batch: int
) -> list[np.ndarray]:
    """Seeded clips of noise, the first of some length and the others shorter."""
    least = round(preprocessor.shortest * preprocessor.sampling_rate)
    return [
        clip[: max(least, round(SHARES[number % len(SHARES)] * len(clip)))]
        for number, clip in enumerate(preprocessor.noise(length, batch))
    ]


def masked_example(
    preprocessor: SoundPreprocessor, length: Length, batch: int
) -> dict[str, Tensor]:
    """The same as a model's inputs: a padded batch."""
    return padded(
        [preprocessor.inputs(one) for one in shortened_noise(preprocessor, length, batch)]
    )


def mask_fault(model: PreTrainedModel, preprocessor: Preprocessor, task: TaskBase) -> str | None:
    """Why a mask would not make padded batches give what single clips give; None where it does.

    Tried on made-up clips, as the model computes.
    """
    if not isinstance(preprocessor, SoundPreprocessor):
        return "graphs of texts take a mask as it is"
    if has_decoder(model):
        return (
            "graphs of an encoder with a decoder take what they need as it is, and no other mask "
            "would help"
        )
    if not isinstance(preprocessor.feature_extractor, Wav2Vec2FeatureExtractor):
        return "its feature extractor fills every clip up to one length, so that there is no need"
    if getattr(model.config, "feat_extract_norm", "layer") == "group":
        return (
            "the group norm of its front end (config.json: feat_extract_norm) counts silence in, "
            "so that padding changes answers, masked or not"
        )
    apart = _difference(model, preprocessor, task)
    # Written so that a difference which is no number is a fault.
    if not apart <= CLOSE[model.device.type]:
        return (
            f"in a padded batch a clip's logits are {apart:.1e} of the largest from those it has "
            "alone, masked or not: its layers carry silence into the clip's own frames"
        )
    return None


def _difference(model: PreTrainedModel, preprocessor: SoundPreprocessor, task: TaskBase) -> float:
    """How far clips in a padded batch are from single ones, as a share of the largest logit."""
    predict: Predict = task.torch_predict(model)
    usual = trial_length(preprocessor)
    seconds = min(max(usual.value, preprocessor.shortest / min(SHARES)), preprocessor.longest)
    length = usual.model_copy(update={"value": seconds})
    clips = [preprocessor.inputs(one) for one in shortened_noise(preprocessor, length, len(SHARES))]
    batch = padded(clips)
    together = own_outputs(task, model.config, batch, predict(batch))
    apart = scale = 0.0
    for clip, found in zip(clips, together, strict=True):
        (alone,) = predict(clip)
        if alone.shape != found.shape:
            return float("inf")
        apart = max(apart, float(np.abs(alone - found).max(initial=0)))
        scale = max(scale, float(np.abs(alone).max(initial=0)))
    return apart / (scale or 1.0)
