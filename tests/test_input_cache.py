"""Inputs are made once per clip, and are the same from memory and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hibprune.data import Text, Utterance
from hibprune.models.input_cache import InputCache


@pytest.mark.parametrize(("room", "files"), [(2**20, 0), (2 * 4 * 100, 1), (0, 3)])
def test_each_clip_is_read_once_and_stays_what_it_was(
    tmp_path: Path, room: int, files: int
) -> None:
    clips = [Utterance(id=name, content=Text(name), target=None) for name in ("a", "b", "c")]
    made: list[str] = []

    def make(clip: Utterance) -> dict[str, Tensor]:
        made.append(clip.id)
        # A view, as feature extractors give them out.
        return {"input_values": torch.full((100, 2), float(ord(clip.id)))[:, :1].T}

    cache = InputCache(make, tmp_path / "inputs", room)
    for _ in range(3):
        for clip in clips:
            (value,) = cache(clip).values()
            assert value.shape == (1, 100)
            assert (value == ord(clip.id)).all()
    assert made == ["a", "b", "c"]
    assert len(list(tmp_path.glob("inputs/*"))) == files
