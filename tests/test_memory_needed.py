"""Inputs that are too long for the memory are refused before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import refused
from standin import StandIn

import hibprune.stages.memory_needed
from hibprune.execution.memory import peak_bytes
from hibprune.models.attention import frozen
from hibprune.models.checkpoint import Checkpoint, load_checkpoint
from hibprune.recipe import load_recipe
from hibprune.records.medium import Length
from hibprune.stages.memory_needed import room_fault


def checkpoint_of(recipe: Path) -> Checkpoint:
    loaded = load_recipe(recipe)
    return load_checkpoint(
        loaded.recipe.model, loaded.recipe.task, loaded.root, torch.device("cpu")
    )


@pytest.mark.parametrize("place", ["benchmark", "export"])
def test_clips_of_months_are_refused(stand_in: StandIn, place: str) -> None:
    (fault,) = refused(stand_in, "--set", f"{place}.seconds=[1e7]")
    assert fault.startswith(f"{place}.seconds: ")
    assert "GB of memory, and " in fault
    assert fault.endswith("set shorter ones")


@pytest.mark.slow
def test_the_estimate_is_of_the_size_of_what_is_taken(
    stand_ins: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(stand_ins("keyword_spotting") / "recipe.yaml")
    length = Length(value=70.0, unit="seconds")
    inputs = checkpoint.preprocessor.example(length, 1)
    checkpoint.model.set_attn_implementation("eager")
    with frozen(checkpoint.model), torch.no_grad():
        taken = peak_bytes(lambda: checkpoint.model(**inputs), torch.device("cpu"))
    monkeypatch.setattr(hibprune.stages.memory_needed, "free_bytes", lambda _: 4 * taken)
    assert room_fault(checkpoint, length, 1) is None
    monkeypatch.setattr(hibprune.stages.memory_needed, "free_bytes", lambda _: taken // 4)
    assert room_fault(checkpoint, length, 1) is not None
    assert room_fault(checkpoint, Length(value=5.0, unit="seconds"), 1) is None


def test_a_window_that_is_always_full_takes_no_more_for_longer_clips(
    stand_ins: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(stand_ins("encoder_decoder") / "recipe.yaml")
    of_one = hibprune.stages.memory_needed._bytes_of_one
    short, long = (Length(value=value, unit="seconds") for value in (0.5, 1.0))
    assert of_one(checkpoint, short) == of_one(checkpoint, long)
