"""Clips with transcripts for tiny models with a decoder, and what comes of them in whole passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny_models import WITH_DECODER, TinyModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from hibprune.attribution.base import Sample
from hibprune.models.layerwise import CalibrationClip
from hibprune.tasks import Batch


def by_name(name: str) -> TinyModel:
    return next(tiny for tiny in WITH_DECODER if tiny.name == name)


def logits(model: PreTrainedModel, tiny: TinyModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny.inputs()).logits


def clips_of(tiny: TinyModel, count: int) -> list[CalibrationClip]:
    """Clips that differ, with transcripts of several lengths."""
    generator = torch.Generator().manual_seed(7)
    clips = []
    for number in range(count):
        shape = list(tiny.inputs(batch=1)[tiny.main_input].shape)
        if tiny.takes == "waveform" and number % 3 == 2:
            shape[1] = 4 * shape[1] // 5
        tokens = torch.randint(4, 40, (1, 8 + number % 4), generator=generator)
        tokens[0, 0] = 1
        content = torch.randn(shape, generator=generator)
        clips.append(CalibrationClip({tiny.main_input: content}, tokens=tokens))
    return clips


def last_states(model: PreTrainedModel, clips: Sequence[CalibrationClip]) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [model.base_model(**clip.inputs, decoder_input_ids=clip.tokens)[0][0] for clip in clips]
        )


def samples_of(tiny: TinyModel, count: int = 12) -> tuple[list[CalibrationClip], list[Sample]]:
    """Clips, and the same as samples: what the decoder says begins after its start token."""
    clips = clips_of(tiny, count)
    samples = []
    for number, clip in enumerate(clips):
        assert clip.tokens is not None
        said = (*clip.tokens[0, 1:].tolist(), 2)
        samples.append(Sample(str(number), dict(clip.inputs), said))
    return clips, samples


def no_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    raise AssertionError("it looks at no loss")


def loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy when the decoder is fed 1 and then all but the last token."""
    said = torch.tensor([list(target) for target in batch.targets])
    fed = torch.cat([torch.ones_like(said[:, :1]), said[:, :-1]], 1)
    found = model(**batch.inputs, decoder_input_ids=fed).logits
    return nn.functional.cross_entropy(found.transpose(1, 2), said, reduction="none").mean(1)
