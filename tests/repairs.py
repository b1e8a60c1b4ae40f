"""Repair as the tests call it, and clips for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_models import TinyModel
from transformers import PreTrainedModel

from hibprune.compression.repair import repair
from hibprune.models.layerwise import CalibrationClip
from hibprune.records.repair import Repair


def repaired(
    model: PreTrainedModel,
    smaller: PreTrainedModel,
    clips: Sequence[CalibrationClip],
    scratch: Path,
    kind: Any = "least-squares",
    room: int = 2**30,
    **more: Any,
) -> Repair:
    """Repair a model in place as runs do unless told otherwise."""
    return repair(model, smaller, clips, kind, scratch, room, **more)


def clips_of(tiny: TinyModel, count: int) -> list[CalibrationClip]:
    """Clips that differ."""
    shape, clips = list(tiny.inputs(batch=1)[tiny.main_input].shape), []
    for number in range(count):
        if tiny.takes == "tokens":
            content = torch.randint(2, 40, shape, generator=torch.Generator().manual_seed(number))
        else:
            content = torch.randn(shape, generator=torch.Generator().manual_seed(number))
        clips.append(CalibrationClip({tiny.main_input: content}))
    return clips
