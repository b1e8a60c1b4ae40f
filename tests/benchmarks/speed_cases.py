"""Models and samples that attribution is timed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hibprune.attribution.session import Sample
from hibprune.recipe import load_recipe
from hibprune.stages.load import load
from hibprune.tasks import Batch

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes/quickstart.yaml"
RATE = 16_000

Loss = Callable[[PreTrainedModel, Batch], Tensor]


@dataclass(frozen=True)
class Case:
    """A model with its samples, and how much of the work each side does.

    The reference does `compared` samples; `steps` are the reference's and the exact engine's, and
    the most that automatic stopping takes.
    """

    name: str
    model: PreTrainedModel
    samples: Sequence[Sample]
    loss: Loss
    compared: int
    steps: int


def class_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Cross-entropy of each clip's label."""
    logits = model(**batch.inputs).logits
    labels = torch.tensor([target[0] for target in batch.targets], device=logits.device)
    return functional.cross_entropy(logits.float(), labels, reduction="none")


def token_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of each clip's tokens, as many for all clips."""
    logits = model(**batch.inputs).logits.float()
    targets = torch.tensor(batch.targets, device=logits.device)
    return functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)


def quickstart(number: int) -> tuple[PreTrainedModel, list[Sample]]:
    """The quickstart's model and the first of its calibration clips."""
    loaded = load_recipe(QUICKSTART)
    recipe, material = loaded.recipe, load(loaded, torch.device("cpu"))
    checkpoint = material.checkpoint
    samples = []
    for clip in material.calibration.utterances[:number]:
        reading = checkpoint.read(clip.content, recipe.calibration.durations)
        assert clip.target is not None
        target = recipe.task.encode(clip.target, checkpoint.vocabulary)
        samples.append(Sample(clip.id, checkpoint.calibration_inputs(reading), target))
    return checkpoint.model, samples


def waveforms(number: int, seconds: float) -> list[Sample]:
    """Noise, which costs what speech costs."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, int(seconds * RATE))
    return [
        Sample(f"{i}", {"input_values": torch.randn(shape, generator=generator)}, (i % 10,))
        for i in range(number)
    ]


def base_shape(layers: int = 12) -> PreTrainedModel:
    """wav2vec2-base with random weights: 12 layers of 12 heads, 768 wide."""
    torch.manual_seed(0)
    return Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(num_hidden_layers=layers, num_labels=12)
    ).eval()


def whisper_tiny(layers: int = 4) -> PreTrainedModel:
    """whisper-tiny with random weights: 4 layers of 6 heads, 384 wide."""
    torch.manual_seed(0)
    return WhisperForConditionalGeneration(
        WhisperConfig(
            d_model=384,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=6,
            decoder_attention_heads=6,
            encoder_ffn_dim=1536,
            decoder_ffn_dim=1536,
        )
    ).eval()


def spectrograms(number: int, lengths: Sequence[float]) -> list[Sample]:
    """Mel frames, 100 a second, of clips of several lengths, with 20 tokens each."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for seconds in lengths:
        for _ in range(number):
            inputs = {
                "input_features": torch.randn(1, 80, int(100 * seconds), generator=generator),
                "decoder_input_ids": torch.randint(50_000, (1, 20), generator=generator),
            }
            target = torch.randint(50_000, (20,), generator=generator)
            samples.append(Sample(f"{len(samples)}", inputs, tuple(target.tolist())))
    return samples
