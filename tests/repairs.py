"""Repair as the tests call it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
