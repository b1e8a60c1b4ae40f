"""What other libraries have to say stays off the terminal; what is wrong does not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tiny_models import WITH_DECODER
from transformers import PreTrainedModel

from hibprune.compression.remove import save_model
from hibprune.execution.libraries import quiet_libraries


@pytest.fixture
def whisper() -> PreTrainedModel:
    """A Whisper with a setting of generation in its configuration, as the published ones have."""
    model = next(tiny for tiny in WITH_DECODER if tiny.name == "whisper").build()
    model.config.suppress_tokens = [1, 2]
    return model


def said(model: PreTrainedModel, directory: Path, quiet: bool) -> list[str]:
    """The warnings of saving a model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        if quiet:
            quiet_libraries()
        save_model(model, directory)
    return [str(warning.message) for warning in caught]


def test_saving_whisper_says_nothing(whisper: PreTrainedModel, tmp_path: Path) -> None:
    assert said(whisper, tmp_path, quiet=True) == []


def test_it_would_have_said_something(whisper: PreTrainedModel, tmp_path: Path) -> None:
    assert any("generation" in warning for warning in said(whisper, tmp_path, quiet=False))


def test_warnings_of_anyone_else_and_errors_are_heard() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        quiet_libraries()
        warnings.warn_explicit(
            "of ours", UserWarning, "here.py", 1, module="hibprune.deployment.export"
        )
        warnings.warn_explicit("grave", RuntimeWarning, "there.py", 1, module="transformers.utils")
    assert [str(warning.message) for warning in caught] == ["of ours", "grave"]
